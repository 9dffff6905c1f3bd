"""``pellucid decode``: pictures from latents that were kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pellucid.cli._app import app, report, show_path
from pellucid.cli._files import OUTPUTS, Output
from pellucid.cli._like import ModelFiles, of_record
from pellucid.cli._model import ModelFile, Vae, open_parts


@app.command()
def decode(
    file: Annotated[Path, typer.Argument(help="Latents, as `generate` keeps them.")],
    model: ModelFile = None,
    vae: Vae = None,
    out: Annotated[
        str | None,
        typer.Option(
            help=f"Folder for the pictures. Default: that of your settings, else {OUTPUTS}."
        ),
    ] = None,
) -> None:
    """Decode latents that an earlier run could not decode, in float32.

    Uses the autoencoder of the model that made them, or the one given with --model or --vae.
    """
    import torch

    from pellucid.images.latent_file import load_latents
    from pellucid.preview import pictures
    from pellucid.request import Request
    from pellucid.runtime import Runtime

    output = Output.of(None if out is None else f"{out}/")
    latents, about = load_latents(file)
    records = [of_record(file, record) for record in _records(file, about, len(latents))]
    files, warnings = ModelFiles(model, vae=vae), list[str]()
    if records:
        files, warnings = records[0].over(files)
    loaded = open_parts(files.model, files.vae)
    if records:
        request = Request.model_validate(records[0].request)
        warnings += records[0].missing(files, loaded.name, request)
    for warning in warnings:
        report(warning)
    channels = loaded.vae.config.latent_channels
    if latents.shape[1] != channels:
        raise ValueError(
            f"{file} has latents with {latents.shape[1]} channels; {loaded.name} decodes {channels}"
        )
    if not torch.isfinite(latents).all():
        raise ValueError(f"{file} has latents that are not finite, which cannot be decoded")
    loaded.vae.float()
    stem = file.name.removesuffix(".safetensors").removesuffix(".latents")
    for i, picture in enumerate(pictures(Runtime(loaded), latents)):
        record = None
        if records:
            request = Request.model_validate({**records[i].request, "decoder": "vae"})
            record = files.record(request, loaded.name)
        show_path(output.save_picture(picture, record, stem))
    if output.failed:
        raise SystemExit(2)


def _records(file: Path, about: Mapping[str, str], count: int) -> list[dict[str, Any]]:
    """What `generate` stored with each of the latents; [] if nothing is there."""
    try:
        found = json.loads(about.get("requests", "[]"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} has metadata that is not valid JSON") from error
    if not found:
        return []
    if not isinstance(found, list) or len(found) != count or not all(map(_is_object, found)):
        raise ValueError(f"{file} does not have one request for each of its {count} latents")
    return found


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)
