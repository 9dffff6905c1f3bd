"""``pellucid noise``: what noise does to a picture, and what the model sees through it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli._app import app
from pellucid.cli._model import ModelFile, Prediction, Vae
from pellucid.cli._page import JSON_HELP, OUT_HELP, deliver, page_path


def _times(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"--t is {text!r}; whole numbers with commas are wanted, as 0,250,500,999")
    return [int(part) for part in parts]


@app.command()
def noise(
    picture: Annotated[Path, typer.Argument(help="Any picture.")],
    model: ModelFile = None,
    vae: Vae = None,
    prediction: Prediction = None,
    t: Annotated[str | None, typer.Option("--t", help="Times of 1000, as 0,250,500,999.")] = None,
    prompt: Annotated[str, typer.Option(help="What the model is told.")] = "",
    guidance: Annotated[float, typer.Option(help="How much the prompt counts; 1: once.")] = 1.0,
    schedule: Annotated[
        str | None, typer.Option(help="That of the small steps: linear, cosine, ...")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help=f"{OUT_HELP} An overview lies beside it as .png.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """A page of schedules, small steps, types of noise, and the model's guess from every t."""
    from pellucid import checkpoints
    from pellucid.explain import noise as noise_lab
    from pellucid.explain.noise import page, schedules
    from pellucid.images.load import open_image
    from pellucid.images.metadata import save_image

    path = page_path(out, as_json, picture, "noise")
    times = noise_lab.TIMES if t is None else _times(t)
    walked = None if schedule is None else schedules.named(schedule)
    image = open_image(picture)
    loaded = checkpoints.load(model, prediction=prediction, vae=vae)
    lab = noise_lab.look(
        loaded,
        image,
        picture.name,
        times,
        prompt=prompt,
        guidance=guidance,
        seed=seed,
        schedule=walked,
    )
    deliver(lab, lambda: page.html(lab), path, as_json)
    if path is not None:
        overview = path.with_suffix(".png")
        save_image(page.overview(lab), overview)
        if not as_json:
            typer.echo(overview)
