"""``pellucid decode``: pictures from latents that were kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pellucid.cli import _like
from pellucid.cli._app import app, tell
from pellucid.cli._files import free_name
from pellucid.cli._model import ModelFile, Vae, open_parts


@app.command()
def decode(
    file: Annotated[Path, typer.Argument(help="Latents, as `generate` keeps them.")],
    model: ModelFile = None,
    vae: Vae = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("outputs"),
) -> None:
    """Decode latents that an earlier run could not, in float32.

    By the decoder of the model that made them, which they name; --model or --vae name another.
    """
    import torch

    from pellucid.images.latent_file import load_latents
    from pellucid.images.metadata import save_image
    from pellucid.pipeline import pictures
    from pellucid.request import Request
    from pellucid.runtime import Runtime

    latents, about = load_latents(file)
    records = _records(file, about, len(latents))
    told = [_like.of_record(file, record) for record in records]
    asked = _like.Opening(model, vae=vae)
    opening, warnings = told[0].over(asked) if told else (asked, [])
    loaded = open_parts(opening.model, opening.vae)
    if told:
        warnings += told[0].other_model(opening, loaded.name)
    for warning in warnings:
        tell(warning)
    channels = loaded.vae.config.latent_channels
    if latents.shape[1] != channels:
        raise ValueError(
            f"{file} holds latents of {latents.shape[1]} channels; {loaded.name} decodes {channels}"
        )
    if not torch.isfinite(latents).all():
        raise ValueError(f"{file} holds latents that are not finite; no decoder helps")
    loaded.vae.float()
    out.mkdir(parents=True, exist_ok=True)
    stem = file.name.removesuffix(".safetensors").removesuffix(".latents")
    for i, picture in enumerate(pictures(Runtime(loaded), latents)):
        target = free_name(out, stem)
        record = None
        if told:
            request = Request.model_validate({**told[i].request, "decoder": "vae"})
            record = opening.record(request, loaded.name)
        save_image(picture, target, record)
        typer.echo(target)


def _records(file: Path, about: Mapping[str, str], count: int) -> list[dict[str, Any]]:
    """What `generate` stored with each of so many latents; [] if nothing is there."""
    try:
        found = json.loads(about.get("requests", "[]"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} says what made it in what is not JSON") from error
    if not found:
        return []
    if not isinstance(found, list) or len(found) != count or not all(map(_is_object, found)):
        raise ValueError(f"{file} does not say what made each of its {count} latents")
    return found


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)
