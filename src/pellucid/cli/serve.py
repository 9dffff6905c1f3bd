"""``pellucid serve``: the HTTP interfaces."""

from __future__ import annotations

import importlib.util
import json
import os
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from pellucid.cli._app import app, report, show, show_json
from pellucid.cli._model import computed
from pellucid.messages import sentence
from pellucid.settings import OF_SERVE, load_settings

if TYPE_CHECKING:
    from pellucid.serve.configuration import Configuration

NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def _option(help: str, *flags: str) -> Any:
    return typer.Option(*flags, help=help)


@app.command()
def serve(
    host: Annotated[str | None, _option("Address; beyond this machine, a token is made.")] = None,
    port: Annotated[int | None, _option("Port; 0 takes a free one. Default: 7860.")] = None,
    data: Annotated[Path | None, _option("Folder of the queue, history and pictures.")] = None,
    models: Annotated[
        list[Path] | None, _option("A folder of models. Default: that of your settings.")
    ] = None,
    loras: Annotated[Path | None, _option("The folder of LoRAs.")] = None,
    embeddings: Annotated[Path | None, _option("The folder of embeddings.")] = None,
    device: Annotated[list[str] | None, _option("cpu, cuda, ...; a worker for each.")] = None,
    replicas: Annotated[int | None, _option("Workers of each device. Default: 1.")] = None,
    ray: Annotated[bool | None, _option("Run the workers on a Ray cluster.", "--ray")] = None,
    dtype: Annotated[str | None, _option("float32, float16 or bfloat16.")] = None,
    backend: Annotated[
        str | None,
        _option("How networks are computed: eager, packed, fused, int8, openvino, openvino_int8."),
    ] = None,
    fast: Annotated[bool, _option("Faster, a little less exact.", "--fast")] = False,
    exact: Annotated[bool, _option("As exact as float32 is; slower.", "--exact")] = False,
    log: Annotated[str | None, _option("The form of the log on stderr: text or json.")] = None,
    open_page: Annotated[bool, _option("Open the studio in a browser.", "--open")] = False,
    print_config: Annotated[
        bool, _option("Show all settings as JSON, and end.", "--print-config")
    ] = False,
) -> None:
    """Serve the studio to a browser on this machine, and HTTP interfaces to programs.

    Settings are options, environment variables such as PELLUCID_SERVE_QUEUE_LIMIT, and the table
    [serve] of the file of settings, in this precedence; --print-config shows all of them.
    """
    if absent := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"serve needs {', '.join(absent)}; install the extra: pip install 'pellucid[serve]'"
        )
    from pellucid.serve.server import run

    if fast or exact:
        computing = computed(dtype or "auto", backend or "auto", fast, exact)
        dtype, backend = (None if each == "auto" else each for each in computing)
    options = {
        "host": host,
        "port": port,
        "data": data,
        "models": models and tuple(models),
        "loras": loras,
        "embeddings": embeddings,
        "devices": device and tuple(device),
        "replicas": replicas,
        "ray": ray,
        "dtype": dtype,
        "backend": backend,
        "log": log,
    }
    configuration = _configuration(options)
    if print_config:
        shown = configuration.model_dump(mode="json")
        shown["token"] = shown["token"] and "(set)"
        show_json(json.dumps(shown, indent=1))
        return

    def say(address: str) -> None:
        show(address)
        if open_page:
            webbrowser.open(address)

    run(configuration, say, report)


def _configuration(options: Mapping[str, Any]) -> Configuration:
    """The settings of a server: options that were given, else the environment's, else the file's."""
    from pellucid.serve.configuration import Configuration

    loaded = load_settings()
    mine = loaded.settings
    given: dict[str, Any] = {
        "models": (mine.models,),  # the folders of all commands
        "loras": mine.loras,
        "embeddings": mine.embeddings,
        "upscalers": mine.upscalers,
        **mine.serve,
    }
    given |= {
        variable.removeprefix(OF_SERVE).lower(): os.environ[variable]
        for variable in loaded.unused
        if variable.startswith(OF_SERVE)
    }
    given |= {name: value for name, value in options.items() if value is not None}
    try:
        return Configuration.model_validate(given)
    except ValidationError as error:
        raise ValueError(sentence(error, Configuration)) from None
