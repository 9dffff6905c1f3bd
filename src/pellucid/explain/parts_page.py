"""The opened parts as pages."""

from __future__ import annotations

from html import escape

from pellucid.explain.autoencoder import Cost, RoundTrip
from pellucid.explain.clip import Seen, Similarity
from pellucid.html.pages import (
    figure,
    page,
    paragraph,
    picture,
    row,
    section,
    source,
    table,
)
from pellucid.images.data_url import to_data_url

SHOWN = 320  # width in pixels that a smaller picture is shown with
CHANNEL = 112
LOSSLESS = 2**18  # pixels of a larger picture would make a large page


# ---------------------------------------------------------------- the autoencoder


def round_trip_html(trip: RoundTrip) -> str:
    """A page of one picture through the autoencoder."""
    width = max(SHOWN, trip.picture.width)
    difference = f"the difference; white is the largest, {trip.largest} of 255"
    colours = [] if trip.colours is None else [trip.colours]
    kind = "PNG" if trip.picture.width * trip.picture.height <= LOSSLESS else "WEBP"
    return page(
        f"Autoencoder: {trip.source}",
        paragraph(f"{trip.source}: {trip.fitted}. Model: {trip.model}."),
        section(
            "There and back",
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
                f"{len(trip.channels)} numbers for each place, the encoder's times s = "
                f"{trip.scale:.4g}. Each channel as a picture: black is three deviations below its "
                "mean, white three above."
            ),
            row(*(picture(one, "the colours of the places, linearly", SHOWN) for one in colours)),
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
    whole = cost.looks * cost.latent_look + cost.decode
    rows: list[tuple[object, ...]] = [
        ("values", *_against(cost.pixel_values, cost.latent_values)),
        (
            "bytes, of 8 bits a pixel's and 16 bits a latent's value",
            *_against(cost.pixel_bytes, cost.latent_bytes),
        ),
    ]
    if cost.pixel_look is not None:
        rows += [
            ("operations, the network looks once", *_against(cost.pixel_look, cost.latent_look)),
            (
                f"operations, {cost.looks} looks and the decoder",
                *_against(cost.looks * cost.pixel_look, whole),
            ),
        ]
    else:
        rows += [
            ("operations, the network looks once", "too many places", cost.latent_look, ""),
            (f"operations, {cost.looks} looks and the decoder", "too many places", whole, ""),
        ]
    return [
        paragraph(
            "The same network on an input as large as the picture, against on its latents. Counted "
            "are the multiplications and additions of products, convolutions and attention."
        ),
        table(("", "pixels", "latents", "times"), rows),
        paragraph(
            f"The price: {cost.encode:,} operations to encode a picture, {cost.decode:,} to decode "
            "one, and what the round trip above loses."
        ),
    ]


def _against(pixels: int, latents: int) -> tuple[int, int, float]:
    return pixels, latents, pixels / latents


# ---------------------------------------------------------------- CLIP


def similarity_html(found: Similarity) -> str:
    """A page of pictures and texts against each other."""
    cut = [
        paragraph(f"Too long for {found.model}, left out of {text!r}: {end!r}.")
        for text, end in zip(found.texts, found.left_out, strict=True)
        if end
    ]
    nearest = section(
        "The nearest words",
        paragraph(f"Of {found.words:,} words, and their cosines."),
        row(*(_words(seen) for seen in found.pictures)),
    )
    return page(
        "CLIP: " + ", ".join(seen.name for seen in found.pictures),
        section(
            "Similarity",
            source("clip.py", "cos(a, b) = a · b / (|a| |b|)"),
            paragraph(
                f"The cosine between every two, as the model {found.model} sees them: 1 is the same "
                "direction, 0 is none in common. The stronger the colour, the nearer."
            ),
            *cut,
            _matrix(found),
        ),
        *([nearest] if found.words else []),
        style=_MATRIX,
    )


_MATRIX = (
    ".matrix img{width:48px;height:48px}.matrix td,.matrix th{text-align:center;border:0}"
    ".matrix th{font-weight:normal;font-size:.8rem;min-width:4.5rem;max-width:9rem;"
    "overflow-wrap:break-word}"
)


def _matrix(found: Similarity) -> str:
    heads = [_head(seen) for seen in found.pictures]
    heads += [escape(text) if text.strip() else "<i>no words</i>" for text in found.texts]
    count = len(heads)
    others = [found.cosines[i][j] for i in range(count) for j in range(count) if i != j]
    low, high = (min(others), max(others)) if others else (0.0, 1.0)
    span = max(high - low, 1e-9)
    lines = ["<tr><th></th>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    for head, cosines in zip(heads, found.cosines, strict=True):
        cells = "".join(_cell(cosine, (cosine - low) / span) for cosine in cosines)
        lines.append(f"<tr><th>{head}</th>{cells}</tr>")
    return f'<div class="scroll"><table class="matrix">{"".join(lines)}</table></div>'


def _cell(cosine: float, strength: float) -> str:
    depth = 0.7 * min(max(strength, 0.0), 1.0)
    return f'<td style="background:rgba(0,128,200,{depth:.2f})">{round(cosine, 2) + 0.0:.2f}</td>'


def _head(seen: Seen) -> str:
    return f'<img src="{to_data_url(seen.picture)}" alt="{escape(seen.name)}">{escape(seen.name)}'


def _words(seen: Seen) -> str:
    width, height = seen.size
    side = seen.picture.width
    caption = f"{seen.name}: {width}x{height}, its middle at {side}x{side}"
    words = table(("word", "cosine"), [(near.word, near.cosine) for near in seen.nearest])
    return figure(picture(seen.picture, caption, max(side, 160)) + words)
