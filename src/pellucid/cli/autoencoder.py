"""``pellucid autoencoder``: a picture to latents and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pellucid.cli._app import app
from pellucid.cli._model import ModelFile, Vae, open_parts
from pellucid.cli._page import JSON_HELP, OUT_HELP, deliver, page_path


@app.command()
def autoencoder(
    picture: Annotated[Path, typer.Argument(help="Any picture.")],
    model: ModelFile = None,
    vae: Vae = None,
    out: Annotated[Path | None, typer.Option(help=OUT_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """A page of a picture's round trip, what it lost, its latents, and what they save."""
    from pellucid.explain import parts_page as page
    from pellucid.explain.autoencoder import look
    from pellucid.images.load import open_image

    path = page_path(out, as_json, picture, "autoencoder")
    image = open_image(picture)
    trip = look(open_parts(model, vae), image, picture.name)
    deliver(trip, lambda: page.round_trip_html(trip), path, as_json)
