"""``pellucid evaluate``: how good a model is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli._app import app, show_path
from pellucid.cli._bar import show_progress
from pellucid.cli._files import OUTPUTS, check_out
from pellucid.cli._model import ModelFile, Prediction, Vae
from pellucid.plugins import discover


@app.command()
def evaluate(
    model: ModelFile = None,
    vae: Vae = None,
    prediction: Prediction = None,
    art: Annotated[Path, typer.Option(help="The rendered emoji.")] = Path("runs/art64.npz"),
    classifier: Annotated[Path, typer.Option(help="The trained classifier.")] = Path(
        "runs/classifier/state.pt"
    ),
    out: Annotated[Path, typer.Option(help="Folder for results.json and sheet.png.")] = Path(
        OUTPUTS, "evaluation"
    ),
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps of every picture.", min=1, max=1000)
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help=f"What is measured: {', '.join(discover('pellucid.evaluate.metrics'))}; "
            "repeatable. Without it: everything."
        ),
    ] = None,
) -> None:
    """Measure a model: do its pictures show what the prompts say?"""
    from pellucid import checkpoints
    from pellucid.evaluate.report import report

    check_out(out)
    loaded = checkpoints.load(model, prediction=prediction, vae=vae)
    if steps is not None:
        loaded = replace(loaded, defaults=replace(loaded.defaults, steps=steps))
    report(loaded, art, classifier, out, metric or (), show_progress)
    show_path(out / "results.json")
