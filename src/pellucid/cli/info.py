"""``pellucid info``: what a file is."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli._app import app, show, show_json
from pellucid.cli._model import Prediction
from pellucid.folders import embedded
from pellucid.settings import KINDS, load_settings

if TYPE_CHECKING:
    from pellucid.images.metadata import Metadata

FIRST = 5  # of a long list in the text; JSON has all


@app.command()
def info(
    file: Annotated[
        Path | None, typer.Argument(help="A model's file or folder, other weights, or a picture.")
    ] = None,
    prediction: Prediction = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show what a model or another file of weights is, or how a picture was made."""
    from PIL import Image

    from pellucid.images.load import OPENED, is_picture
    from pellucid.images.metadata import read_metadata

    path = embedded() if file is None else _found(file)
    facts: dict[str, Any]
    if is_picture(path):
        found = read_metadata(path)
        facts = {"request": found.request, "parameters": found.parameters}
        if found.request is None and found.settings is not None:
            facts |= found.settings._asdict()
        if not as_json:
            facts = _said(found)
        if found.settings is None and found.request is None:
            facts |= _embedding(path)
        if not facts:
            show(f"{path} has no record of how it was made")
            return
    else:
        from pellucid import checkpoints

        try:
            facts = {"file": str(path)} | checkpoints.describe(path, prediction)
        except checkpoints.CheckpointError as error:
            if path.suffix.lower() not in Image.registered_extensions():
                raise
            raise ValueError(f"{path} is not a picture ({', '.join(OPENED)})") from error
        if "prompt" in facts:  # a model
            facts["runs here on"] = _choice(facts["types"], facts["parameters"]["backbone"])
    if as_json:
        show_json(json.dumps(facts, indent=1))
        return
    width = max(map(len, facts)) + 1
    for name, value in facts.items():
        show(f"{name + ':':<{width}} {_text(value)}")


def _found(file: Path) -> Path:
    """The file, or the one of this name in a folder of the settings. ValueError if there is none."""
    own = load_settings().settings
    for field in () if file.exists() else KINDS:
        with suppress(ValueError):
            return own.path_of(field, str(file))
    if not os.path.lexists(file):
        raise ValueError(
            f"{file} does not exist; expected a picture, a model or another file of weights"
        )
    return file


def _embedding(path: Path) -> dict[str, Any]:
    """What an embedding is that a picture holds; {} if it holds none."""
    from pellucid.checkpoints.embedding_files import describe_words

    with suppress(ValueError):
        return describe_words(path)
    return {}


def _said(found: Metadata) -> dict[str, Any]:
    """A picture's record without empty fields: its request, or what another program wrote."""
    if found.request is not None:
        return {k: v for k, v in found.request.items() if v not in (None, "", [])}
    settings = found.settings
    if settings is None:
        return {}
    if settings.problem is not None:
        return {"program": settings.program, "not readable": settings.problem}
    if found.parameters is not None:
        return {"program": settings.program, "parameters": found.parameters}
    others = {"does not exist here": list(settings.unused)} if settings.unused else {}
    return {"program": settings.program} | settings.fields | others


def _choice(types: dict[str, int], parameters: int) -> str:
    """The device, number type and backend that `auto` chooses, and why; for a small network also why
    it is not compiled, where it could be."""
    import torch

    from pellucid.runtime.backends import LARGE, PACKED, choose_backend, fused
    from pellucid.runtime.devices import choose_device
    from pellucid.runtime.precision import choose_dtype

    stored: torch.dtype = getattr(torch, next(iter(types)))
    device = choose_device("auto")
    choice = choose_dtype(device, "auto", stored)
    auto, fast = (
        choose_backend(name, device, parameters, choice.dtype).name for name in ("auto", "fast")
    )
    slower = fused.unsuitable(device) if auto == PACKED and parameters < LARGE else None
    return f"{choice}; backend {auto}, with --fast {fast}" + (f" ({slower})" if slower else "")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v:,}" if type(v) is int else f"{k} {v}" for k, v in value.items())
    if isinstance(value, list):
        first = ", ".join(map(str, value[:FIRST]))
        return f"{len(value)}: {first}, ..." if len(value) > FIRST else first or "none"
    return str(value)
