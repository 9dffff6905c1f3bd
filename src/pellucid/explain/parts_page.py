"""The pages of the autoencoder and of CLIP."""

from __future__ import annotations

from html import escape

from pellucid.explain.autoencoder import Cost, RoundTrip
from pellucid.explain.clip import ComparedPicture, Similarity
from pellucid.html.pages import (
    figure,
    img,
    matrix,
    page,
    paragraph,
    picture,
    row,
    section,
    source,
    table,
)

SMALLEST = 320  # width in pixels at which smaller pictures are shown
CHANNEL = 112
LOSSLESS = 2**18  # pixels; larger pictures are compressed with loss, or the page would be large


# ---------------------------------------------------------------- the autoencoder


def round_trip_html(trip: RoundTrip) -> str:
    """The page of one picture through the autoencoder."""
    width = max(SMALLEST, trip.picture.width)
    kind = "PNG" if trip.picture.width * trip.picture.height <= LOSSLESS else "WEBP"
    difference = f"the difference; white is the largest, {trip.largest} of 255"
    colours = [] if trip.colours is None else [trip.colours]
    return page(
        f"Autoencoder: {trip.source}",
        paragraph(f"{trip.source}: {trip.fitted}. Model: {trip.model}."),
        section(
            "Encoded and decoded",
            source("vae.py", "z = s · encode(x),  x' = decode(z / s),  PSNR = 10 lg(4 / MSE)"),
            row(
                picture(trip.picture, "the picture", width, kind),
                picture(trip.decoded, f"encoded and decoded: PSNR {trip.psnr:.2f} dB", width, kind),
                picture(trip.difference, difference, width, kind),
            ),
        ),
        section(
            "The latents",
            paragraph(
                f"{len(trip.channels)} numbers for each position, the encoder's output times s = "
                f"{trip.scale:.4g}. Each channel as a picture: black is three standard deviations "
                "below its mean, white three above."
            ),
            row(*(picture(one, "estimated colours, linear", SMALLEST) for one in colours)),
            row(
                *(
                    picture(
                        one.picture, f"{number}: {one.mean:+.2f} ± {one.deviation:.2f}", CHANNEL
                    )
                    for number, one in enumerate(trip.channels)
                )
            ),
        ),
        section("What they save and cost", *_cost(trip.cost)),
    )


def _cost(cost: Cost) -> list[str]:
    whole = cost.evaluations * cost.latent_operations + cost.decode
    pixels = cost.pixel_operations
    rows = [
        ("values", cost.pixel_values, cost.latent_values),
        (
            "bytes, with 8 bits per pixel value and 16 bits per latent",
            cost.pixel_bytes,
            cost.latent_bytes,
        ),
        ("operations, one network evaluation", pixels, cost.latent_operations),
        (
            f"operations, {cost.evaluations} network evaluations and the decoder",
            None if pixels is None else cost.evaluations * pixels,
            whole,
        ),
    ]
    return [
        paragraph(
            "The same network on an input as large as the picture, compared with the latents. "
            "Multiplications and additions of matrix products, convolutions and attention count."
        ),
        table(
            ("", "pixels", "latents", "ratio"),
            [
                (name, "too large", latents, "")
                if pixels is None
                else (name, pixels, latents, pixels / latents)
                for name, pixels, latents in rows
            ],
        ),
        paragraph(
            f"The price: {cost.encode:,} operations to encode a picture, {cost.decode:,} to decode "
            "one, and what the round trip above loses."
        ),
    ]


# ---------------------------------------------------------------- CLIP


def similarity_html(found: Similarity) -> str:
    """The page of pictures and texts compared with each other."""
    cut = [
        paragraph(f"Too long for {found.model}, left out of {text!r}: {end!r}.")
        for text, end in zip(found.texts, found.left_out, strict=True)
        if end
    ]
    nearest = section(
        "The nearest words",
        paragraph(f"Of {found.words:,} words, with their cosines."),
        row(*(_nearest(one) for one in found.pictures)),
    )
    heads = [img(one.picture, one.name, 48) + escape(one.name) for one in found.pictures]
    heads += [escape(text) if text.strip() else "<i>no words</i>" for text in found.texts]
    return page(
        "CLIP: " + ", ".join(one.name for one in found.pictures),
        section(
            "Similarity",
            source("clip.py", "cos(a, b) = a · b / (|a| |b|)"),
            paragraph(
                f"The cosine of every two vectors of the model {found.model}: 1 is the same "
                "direction, 0 is unrelated. A stronger colour means a larger cosine."
            ),
            *cut,
            matrix(heads, found.cosines),
        ),
        *([nearest] if found.words else []),
    )


def _nearest(found: ComparedPicture) -> str:
    width, height = found.size
    side = found.picture.width
    caption = f"{found.name}: {width}x{height}, its middle at {side}x{side}"
    words = table(("word", "cosine"), [(near.word, near.cosine) for near in found.nearest])
    return figure(picture(found.picture, caption, max(side, 160)) + words)
