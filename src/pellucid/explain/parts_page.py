"""The pages of the autoencoder and of CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pellucid.explain.autoencoder import Cost, RoundTrip
from pellucid.explain.clip import ComparedPicture, NearWord, Similarity
from pellucid.explain.word_space import WordSpace
from pellucid.html.bundles import bundle, read
from pellucid.html.numbers import people
from pellucid.html.pages import (
    control,
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

FOLDER = "explain"
SMALLEST = 320  # width in pixels at which smaller pictures are shown
SAME = 0.999  # a cosine above this: the text itself
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
            control("compare"),
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
            control("values"),
            row(
                *(
                    picture(
                        one.picture,
                        f"{number}: {round(one.mean, 2) + 0.0:+.2f} ± {one.deviation:.2f}",
                        CHANNEL,
                    )
                    for number, one in enumerate(trip.channels)
                ),
                name="channels",
            ),
        ),
        section("What they save and cost", *_cost(trip.cost)),
        script=bundle(read(f"{FOLDER}/autoencoder.js"), FOLDER),
        data={
            "channels": [{"mean": one.mean, "deviation": one.deviation} for one in trip.channels],
            "largest": max(abs(one.mean) + 3 * one.deviation for one in trip.channels) or 1.0,
        },
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
            f"The price: {people(cost.encode)} operations to encode a picture, "
            f"{people(cost.decode)} to decode one, and what the round trip above loses."
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
    heads = [img(one.picture, one.name, 48) + escape(one.name) for one in found.pictures]
    heads += [escape(text) if text.strip() else "<i>no words</i>" for text in found.texts]
    names = [one.name for one in found.pictures]
    return page(
        "CLIP: " + ", ".join(names),
        section(
            "Similarity",
            source("clip.py", "cos(a, b) = a · b / (|a| |b|)"),
            paragraph(
                f"The cosine of every two vectors of the model {found.model}: 1 is the same "
                "direction, 0 is unrelated. The colours go from the smallest cosine here to the "
                "largest of two different ones. Choose a cell to see the angle of its two."
            ),
            *cut,
            *(paragraph(sentence) for sentence in _matches(found)),
            control("angle"),
            ANGLE,
            control("above"),
            matrix(heads, found.cosines),
        ),
        *([_words(found)] if found.words else []),
        script=bundle(read(f"{FOLDER}/clip.js"), FOLDER),
        data={
            "pictures": len(names),
            "names": [*names, *(text or "no words" for text in found.texts)],
            "cosines": [[round(cosine, 4) for cosine in line] for line in found.cosines],
        },
    )


ANGLE = """<svg id="angle" class="angle" viewBox="0 0 100 100" hidden role="img"
aria-label="The angle of the two"><circle cx="50" cy="50" r="44"></circle>
<line class="first" x1="50" y1="50" x2="94" y2="50"></line>
<line class="second" x1="50" y1="50" x2="94" y2="50"></line></svg>"""


def _matches(found: Similarity) -> list[str]:
    """For each picture the nearest of the texts."""
    count = len(found.pictures)
    if len(found.texts) < 2:
        return []
    said = []
    for one, cosines in zip(found.pictures, found.cosines, strict=False):
        best = max(range(len(found.texts)), key=lambda i: cosines[count + i])
        said.append(
            f"Of the texts, “{found.texts[best] or 'no words'}” is nearest to {one.name}, with "
            f"{cosines[count + best]:.2f}."
        )
    return said


def _words(found: Similarity) -> str:
    """The words nearest to each picture and to each text, and what they say of this CLIP."""
    said = [] if found.space is None else _learnt(found, found.space)
    texts = zip(found.texts, found.text_nearest, strict=True)
    return section(
        "The nearest words",
        paragraph(f"Of {found.words:,} words, with their cosines. {' '.join(said)}"),
        row(*(_nearest(one) for one in found.pictures)),
        *(
            [paragraph("Texts are compared with words, so words with words:")]
            if found.texts
            else []
        ),
        row(*(figure(_near(nearest), text or "no words") for text, nearest in texts)),
    )


def _learnt(found: Similarity, space: WordSpace) -> list[str]:
    said = space.sentences()
    for text, nearest in zip(found.texts, found.text_nearest, strict=True):
        others = [near for near in nearest if near.cosine < SAME]
        if others:
            said.append(space.neighbour(text, others[0].word, others[0].cosine))
    return said


def _nearest(found: ComparedPicture) -> str:
    width, height = found.size
    side = found.picture.width
    caption = f"{found.name}: {width}x{height}, its middle at {side}x{side}"
    return figure(picture(found.picture, caption, max(side, 160)) + _near(found.nearest))


def _near(nearest: Sequence[NearWord]) -> str:
    return table(("word", "cosine"), [(near.word, f"{near.cosine:.2f}") for near in nearest])
