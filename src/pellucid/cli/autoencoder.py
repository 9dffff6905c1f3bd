"""``pellucid autoencoder``: a picture to latents and back."""

from __future__ import annotations

from pellucid.cli._app import app
from pellucid.cli._model import ModelFile, Vae, open_parts
from pellucid.cli._page import AsJson, Out, Picture, deliver, page_path


@app.command()
def autoencoder(
    picture: Picture,
    model: ModelFile = None,
    vae: Vae = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Explain the autoencoder: a picture's round trip, its loss, its latents, what they save."""
    from pellucid.explain.autoencoder import round_trip
    from pellucid.explain.parts_page import round_trip_html
    from pellucid.images.load import open_image

    path = page_path(out, as_json, picture, "autoencoder")
    image = open_image(picture)
    trip = round_trip(open_parts(model, vae), image, picture.name)
    deliver(trip, lambda: round_trip_html(trip), path, as_json)
