"""``pellucid info``: what a file is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pellucid.cli._app import app


@app.command()
def info(
    file: Annotated[Path | None, typer.Argument(help="A model or a picture.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """What a model is made of, or what made a picture."""
    from pellucid import checkpoints, images

    path = checkpoints.embedded() if file is None else file
    facts: dict[str, Any]
    if path.suffix.lower() in images.FORMATS:
        found = images.read_metadata(path)
        facts = {"request": found.request, "parameters": found.parameters}
    elif checkpoints.is_tiny_vae(path) or checkpoints.holds_gan(path):
        facts = {"file": str(path)} | checkpoints.describe(path)
    else:
        model = checkpoints.load(path)
        parts = {"backbone": model.backbone, "vae": model.vae, "text": model.text}
        if model.vision is not None:
            parts["vision"] = model.vision
        facts = {
            "name": model.name,
            "file": str(path),
            "parameters": {k: sum(p.numel() for p in m.parameters()) for k, m in parts.items()},
            "prediction": model.prediction,
            "schedule": dataclasses.asdict(model.schedule),
            "defaults": dataclasses.asdict(model.defaults),
            "latents": f"{model.vae.config.latent_channels} channels, 1/{model.vae.config.downsample}"
            " of the width and height",
            "prompt": f"{model.tokenizer.context_length - 2} tokens of {model.tokenizer.vocab_size}",
        }
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(
                f"{k} {v:,}" if isinstance(v, int) else f"{k} {v}" for k, v in value.items()
            )
        typer.echo(f"{name + ':':<12} {value}")
