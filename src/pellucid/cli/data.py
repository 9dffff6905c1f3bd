"""``pellucid data``: training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli._app import app, fail, show_path
from pellucid.cli._files import check_out

data_app = typer.Typer(help="Make training data.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command()
def emoji(
    packages: Annotated[Path, typer.Option(help="The node_modules folder with the icon sets.")],
    out: Annotated[Path, typer.Option(help="The file of the rendered pictures.")] = Path(
        "runs/art64.npz"
    ),
    size: Annotated[int, typer.Option(min=16, max=512, help="Pixels on a side.")] = 64,
    extra: Annotated[
        bool, typer.Option("--extra", help="More emoji than the included model has learned.")
    ] = False,
) -> None:
    """Render the emoji art that the included model was trained on."""
    from pellucid.data.emoji import render

    check_out(out, folder=False)
    try:
        art = render(packages, size, extra)
    except ImportError:
        fail("rendering needs resvg-py; install it with: pip install 'pellucid[data]'")
    out.parent.mkdir(parents=True, exist_ok=True)
    art.save(out)
    show_path(out)
