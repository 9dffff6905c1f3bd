"""``pellucid merge``: one model from two or three."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli._app import app, report, show_path
from pellucid.cli._model import Prediction, Vae, find
from pellucid.files import check_writable


@app.command()
def merge(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="A B [C]", help="Two or three models: files, folders or names."),
    ],
    out: Annotated[Path, typer.Option(help="The file to write, which ends in .safetensors.")],
    method: Annotated[
        str,
        typer.Option(
            help="sum: (1 - b) A + b B, with three models (1 - b - c) A + b B + c C; difference: "
            "A + m (B - C)."
        ),
    ] = "sum",
    share: Annotated[
        str, typer.Option(help="b, or b,c of a sum of three models, or m of a difference.")
    ] = "0.5",
    part: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SHARE", help="Another share for backbone, text or vae; repeatable."
        ),
    ] = None,
    prediction: Prediction = None,
    vae: Vae = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file of --out if it exists.")
    ] = False,
) -> None:
    """Merge two or three models of one family into one file, in the layout of the first.

    Weights keep the number type of the first model, and are read one after the other. The file records
    the models, their hashes and their shares.
    """
    if out.suffix != ".safetensors" or out.is_dir():
        raise ValueError(f"--out must be a file that ends in .safetensors, got {out}")
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists; --overwrite replaces it")
    check_writable(out)
    paths = [find("models", str(model)) for model in models]
    parts = {}
    for text in part or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--part must be NAME=SHARE, such as vae=0, got {text!r}")
        if name in parts:
            raise ValueError(f"--part {name} is given twice")
        parts[name] = _shares(value, f"--part {name}")
    shares = _shares(share, "--share")

    from pellucid import checkpoints

    recipe = checkpoints.MergeRecipe(len(models), method, shares, parts)
    out.parent.mkdir(parents=True, exist_ok=True)
    for text in checkpoints.merge(paths, out, recipe, prediction, vae):
        report(text)
    show_path(out)


def _shares(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"{option} must be numbers with commas, got {text!r}") from None
