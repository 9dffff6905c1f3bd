"""``pellucid decode``: pictures from latents that were kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli._app import app
from pellucid.cli._files import free_name
from pellucid.cli._model import ModelFile, open_parts


@app.command()
def decode(
    file: Annotated[Path, typer.Argument(help="Latents, as `generate` keeps them.")],
    model: ModelFile = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("outputs"),
) -> None:
    """Decode latents that an earlier run could not, in float32 and by this model's decoder."""
    import json

    import torch

    from pellucid.images import save
    from pellucid.pipeline import pictures
    from pellucid.vae import load_latents

    latents, about = load_latents(file)
    loaded = open_parts(model)
    channels = loaded.vae.config.latent_channels
    if latents.shape[1] != channels:
        raise ValueError(
            f"{file} holds latents of {latents.shape[1]} channels; {loaded.name} decodes {channels}"
        )
    if not torch.isfinite(latents).all():
        raise ValueError(f"{file} holds latents that are not finite; no decoder helps")
    loaded.vae.float()
    request = json.loads(about["request"]) if "request" in about else None
    out.mkdir(parents=True, exist_ok=True)
    stem = file.name.removesuffix(".safetensors").removesuffix(".latents")
    for picture in pictures(loaded, latents):
        target = free_name(out, stem)
        save(picture, target, request)
        typer.echo(target)
