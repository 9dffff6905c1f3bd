"""``pellucid noise``: what noise does to a picture, and what the model recovers from it."""

from __future__ import annotations

from typing import Annotated

import typer

from pellucid.cli._app import app
from pellucid.cli._model import ModelFile, Prediction, Vae
from pellucid.cli._page import AsJson, Out, Overwrite, Picture, deliver, page_output


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
        str | None,
        typer.Option("--t", help="The times that are shown, of 1000, such as 0,250,500,999."),
    ] = None,
    prompt: Annotated[str, typer.Option(help="The prompt for the model's estimates.")] = "",
    guidance: Annotated[float, typer.Option(help="Guidance scale; 1: none.")] = 1.0,
    schedule: Annotated[
        str | None, typer.Option(help="The schedule of the small steps: linear, cosine, ...")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Explain noise: schedules, small steps, types of noise, and the model's estimates."""
    from pellucid.images.load import open_image

    output = page_output(out, as_json, overwrite)
    times = None if t is None else _times(t)
    image = open_image(picture)

    from pellucid import checkpoints
    from pellucid.explain.noise import TIMES, NoiseSettings, examine_noise, page
    from pellucid.explain.noise.schedules import schedule_named

    settings = NoiseSettings(
        times=TIMES if times is None else times,
        prompt=prompt,
        guidance=guidance,
        seed=seed,
        schedule=None if schedule is None else schedule_named(schedule),
    )
    loaded = checkpoints.load(model, prediction=prediction, vae=vae)
    report = examine_noise(loaded, image, picture.name, settings)
    deliver(report, lambda: page.html(report), output, f"{picture.stem}-noise", as_json)
