"""``pellucid config``: the settings, and where each came from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from pellucid.cli._app import app, report, show, show_json
from pellucid.cli._model import find
from pellucid.diffusion import PREDICTIONS
from pellucid.messages import sentence
from pellucid.plugins import choose
from pellucid.presets import preset
from pellucid.request.fields import file_fields, files_in
from pellucid.settings import KINDS, OF_SERVE, ModelDefaults, Settings, load_settings


@app.command()
def config(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show your settings: each value, and whether the file or the environment gave it.

    The file is config.toml in the platform's folder for settings, or the file that the environment
    variable PELLUCID_CONFIG names. The variable PELLUCID_MODELS sets `models`, and so on; options
    take precedence over variables, and variables over the file.
    """
    found = load_settings()
    _check_serve(found.settings.serve, str(found.file))

    values = found.settings.model_dump(mode="json", exclude={"defaults"})
    values["defaults"] = {
        name: table.model_dump(mode="json", exclude_unset=True)
        for name, table in found.settings.defaults.items()
    }
    for problem in _problems(found.settings):
        report(problem)
    if as_json:
        rows = {n: {"value": v, "from": found.origins[n]} for n, v in values.items()}
        facts = {"file": str(found.file), "exists": found.file.exists(), "settings": rows}
        show_json(json.dumps(facts, indent=1))
        return
    show(f"{found.file}{'' if found.file.exists() else ' (does not exist)'}")
    tables = {"serve": values.pop("serve")} if values["serve"] else {}
    tables |= {f"defaults of {name}": table for name, table in values.pop("defaults").items()}
    values.pop("serve", None)
    width = max(map(len, values))
    for name, value in values.items():
        text = "the included one" if value is None else value
        show(f"{name:<{width}}  {text}  ({found.origins[name]})")
    for name, table in tables.items():
        shown = ", ".join(f"{field} {json.dumps(value)}" for field, value in table.items())
        show(f"{name}: {shown or 'none'}")
    for variable in (each for each in found.unused if not each.startswith(OF_SERVE)):
        report(f"the environment variable {variable} is not a setting")


def _problems(settings: Settings) -> Iterator[str]:
    """What a command that uses these settings will refuse: names of files and presets that are not
    there."""
    own = {"vae": "vaes", "tiny_vae": "vaes"}
    kinds = file_fields(ModelDefaults) | own
    named: list[tuple[str, Callable[[], object]]] = []
    if settings.model is not None:
        named.append(("model", partial(find, "models", settings.model)))
    for model, table in settings.defaults.items():
        for field in table.model_fields_set:
            place, value = f"defaults.{model}: {field}", getattr(table, field)
            if field == "preset":
                named.append((place, partial(preset, value)))
            elif field == "prediction":
                named.append((place, partial(choose, value, PREDICTIONS, "prediction")))
            elif (
                kinds.get(field) in KINDS and kinds[field] != "upscalers"
            ):  # checked when it is read
                named += [(place, partial(find, kinds[field], name)) for name in files_in(value)]
    for place, look in named:
        try:
            look()
        except ValueError as error:
            yield f"{place}: {error}"


def _check_serve(table: Mapping[str, Any], file: str) -> None:
    """ValueError: the table of `pellucid serve` has a setting that is unknown or wrong."""
    if not table:
        return
    from pellucid.serve.configuration import Configuration

    try:
        Configuration.model_validate(table)
    except ValidationError as error:
        raise ValueError(f"{file}: serve: {sentence(error, Configuration)}") from error
