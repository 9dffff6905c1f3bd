"""``pellucid autoencoder``: a picture to latents and back."""

from __future__ import annotations

from pellucid.cli._app import app
from pellucid.cli._model import ModelFile, Vae, open_parts
from pellucid.cli._page import AsJson, Out, Overwrite, Picture, deliver, page_output


@app.command()
def autoencoder(
    picture: Picture,
    model: ModelFile = None,
    vae: Vae = None,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Explain the autoencoder: a picture's round trip, its loss, its latents, what they save."""
    from pellucid.images.load import open_image

    output = page_output(out, as_json, overwrite)
    image = open_image(picture)

    from pellucid.explain.autoencoder import round_trip
    from pellucid.explain.parts_page import round_trip_html

    trip = round_trip(open_parts(model, vae), image, picture.name)
    deliver(trip, lambda: round_trip_html(trip), output, f"{picture.stem}-autoencoder", as_json)
