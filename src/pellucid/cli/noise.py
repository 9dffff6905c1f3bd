"""``pellucid noise``: what noise does to a picture, and what the model recovers from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli._app import app, show_path
from pellucid.cli._model import ModelFile, Prediction, Vae
from pellucid.cli._page import OUT_HELP, AsJson, Picture, deliver, page_path


def _times(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(
            f"--t must be whole numbers with commas, such as 0,250,500,999, got {text!r}"
        )
    return [int(part) for part in parts]


@app.command()
def noise(
    picture: Picture,
    model: ModelFile = None,
    vae: Vae = None,
    prediction: Prediction = None,
    t: Annotated[
        str | None, typer.Option("--t", help="Times of 1000, such as 0,250,500,999.")
    ] = None,
    prompt: Annotated[str, typer.Option(help="The prompt for the model's estimates.")] = "",
    guidance: Annotated[float, typer.Option(help="Guidance scale; 1: none.")] = 1.0,
    schedule: Annotated[
        str | None, typer.Option(help="Schedule of the small steps: linear, cosine, ...")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help=f"{OUT_HELP} An overview is written next to it, as NAME-overview.png."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain noise: schedules, small steps, types of noise, and the model's estimates."""
    from pellucid import checkpoints
    from pellucid.explain.noise import TIMES, NoiseSettings, examine_noise, page
    from pellucid.explain.noise.schedules import schedule_named
    from pellucid.images.load import open_image
    from pellucid.images.metadata import save_image

    path = page_path(out, as_json, picture, "noise")
    settings = NoiseSettings(
        times=TIMES if t is None else _times(t),
        prompt=prompt,
        guidance=guidance,
        seed=seed,
        schedule=None if schedule is None else schedule_named(schedule),
    )
    image = open_image(picture)
    loaded = checkpoints.load(model, prediction=prediction, vae=vae)
    report = examine_noise(loaded, image, picture.name, settings)
    deliver(report, lambda: page.html(report), path, as_json)
    if path is not None:
        # Not the page's own name with .png: that may be the picture that is explained.
        overview = path.with_name(f"{path.stem}-overview.png")
        save_image(page.overview(report), overview)
        if not as_json:
            show_path(overview)
