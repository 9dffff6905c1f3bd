"""``pellucid convert``: a model from one layout into another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli._app import app, report, show_path
from pellucid.cli._model import Prediction, Vae, named
from pellucid.computing import DTYPES, SHORT
from pellucid.files import check_writable


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A model's file or folder.", **named("models"))
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file or folder to write.")],
    to: Annotated[
        str,
        typer.Option(
            help="diffusers: a folder; ldm: the original single file; native: our own. Another name "
            "lists all."
        ),
    ],
    dtype: Annotated[
        str | None, typer.Option(help="fp32, fp16 or bf16; by default each weight keeps its own.")
    ] = None,
    prediction: Prediction = None,
    vae: Vae = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT if it exists.")
    ] = False,
) -> None:
    """Write a model in another layout: diffusers' folder, the original file, or Pellucid's own."""
    known = SHORT | {name: name for name in DTYPES}
    if dtype is not None and dtype not in known:
        raise ValueError(f"--dtype must be one of {', '.join(SHORT)}, got {dtype!r}")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists; --overwrite replaces it")

    from pellucid import checkpoints
    from pellucid.runtime import precision

    kind = None if dtype is None else precision.DTYPES[known[dtype]]
    if target.is_dir() and not checkpoints.writes_folder(to):
        raise ValueError(f"{target} is a folder; --to {to} writes a file")
    check_writable(target)
    model = checkpoints.load(source, dtype=None, prediction=prediction, vae=vae)
    target.parent.mkdir(parents=True, exist_ok=True)
    for thing in checkpoints.save(model, target, kind, to):
        report(f"left out, because {to} has no place for it: {thing}")
    show_path(target)
