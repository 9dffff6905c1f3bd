"""``pellucid lora``: what a LoRA is for, and what it changes in a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pellucid.cli._app import app, show, show_json
from pellucid.cli._model import Vae, named, open_parts


@app.command()
def lora(
    file: Annotated[Path, typer.Argument(help="A LoRA.", **named("loras"))],
    model: Annotated[
        Path | None,
        typer.Option(
            help="A model; also shows which keys of the LoRA match it.", **named("models")
        ),
    ] = None,
    vae: Vae = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show what a LoRA is for, and with --model which of its keys match the model."""
    from pellucid import checkpoints

    facts: dict[str, Any] = {"file": str(file)} | checkpoints.describe_lora(file)
    if model is not None:
        loaded = open_parts(model, vae)
        read = checkpoints.load_lora(file, loaded)
        facts["model"] = loaded.name
        facts["changed weights"] = {part: len(changes) for part, changes in read.changes.items()}
        facts["keys left out"] = list(read.unmatched)
    if as_json:
        show_json(json.dumps(facts, indent=1))
        return
    width = max(map(len, facts)) + 1
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{number} {what}" for what, number in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value)) or "none"
        show(f"{name + ':':<{width}} {value}")
