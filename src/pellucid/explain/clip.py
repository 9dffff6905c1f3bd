"""CLIP explained: the similarity of pictures and texts, and the words nearest to each picture.

Both towers end in one space, where a picture and its caption have the same direction (Radford et
al. 2021). A prompt can only express differences that exist in this space.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from pellucid.clip import VisionTower
from pellucid.explain.text_vectors import text_vectors, unit_length
from pellucid.explain.word_space import WordSpace, flat, word_space
from pellucid.html.records import Picture, Record
from pellucid.images.pixels import fit, to_tensor
from pellucid.model import Model

MOST_ITEMS = 100
NEAREST = 10


class NearWord(Record):
    """A word and its cosine with a picture."""

    word: str
    cosine: float


class ComparedPicture(Record):
    """A picture as the vision tower receives it, and the words nearest to it."""

    name: str
    size: tuple[int, int]
    """Width and height of the original; its middle is scaled to a square."""
    picture: Picture
    nearest: tuple[NearWord, ...]


class Similarity(Record):
    """Pictures and texts compared in one space."""

    model: str
    pictures: tuple[ComparedPicture, ...]
    texts: tuple[str, ...]
    left_out: tuple[str | None, ...]
    """The end of each text that exceeded the context; None if nothing was cut."""
    words: int
    """The number of words that were searched for the nearest."""
    text_nearest: tuple[tuple[NearWord, ...], ...]
    """The words nearest to each text."""
    space: WordSpace | None
    """The words compared with each other; None for fewer than two."""
    cosines: tuple[tuple[float, ...], ...]
    """(n, n) for the n pictures and texts in this order."""


@torch.no_grad()
def compare_pictures(
    model: Model,
    pictures: Sequence[tuple[str, Image.Image]],
    texts: Sequence[str] = (),
    words: Sequence[str] = (),
    synonyms: Sequence[tuple[str, str]] = (),
) -> Similarity:
    """Compare all with all. pictures: (name, picture); words: to find the nearest among; synonyms:
    pairs of names for one thing.

    Raises ValueError: a model without a vision tower, or whose text tower does not project to the
    space of pictures; no picture; more than `MOST_ITEMS` in all.
    """
    tower = vision_tower(model)
    if not 1 <= len(pictures) <= MOST_ITEMS - len(texts):
        raise ValueError(
            f"at least 1 picture and at most {MOST_ITEMS} pictures and texts together are allowed, "
            f"got {len(pictures)} pictures and {len(texts)} texts"
        )
    side = tower.config.image_size
    squares = [fit(image, side, side) for _, image in pictures]
    pixels = torch.stack([to_tensor(square) for square in squares])
    picture_vectors = unit_length(tower(pixels.to(next(tower.parameters()))))
    words_and_texts = text_vectors(model, [*words, *texts, *flat(synonyms)])
    word_vectors, written, pairs = words_and_texts.split(
        [len(words), len(texts), 2 * len(synonyms)]
    )
    vectors = torch.cat([picture_vectors, written])
    nearest = nearest_words(vectors, words, word_vectors)
    return Similarity(
        model=model.name,
        pictures=tuple(
            ComparedPicture(name=name, size=image.size, picture=square, nearest=near)
            for (name, image), square, near in zip(
                pictures, squares, nearest[: len(pictures)], strict=True
            )
        ),
        texts=tuple(texts),
        left_out=tuple(model.tokenizer.cut(text) for text in texts),
        words=len(words),
        text_nearest=tuple(nearest[len(pictures) :]),
        space=word_space(word_vectors, pairs),
        cosines=tuple(tuple(line) for line in (vectors @ vectors.T).tolist()),
    )


def vision_tower(model: Model) -> VisionTower:
    """The tower that encodes pictures to the space of texts; ValueError if there is none."""
    if model.vision is None:
        raise ValueError(
            f"{model.title} has no vision tower, which CLIP needs for pictures; the included model "
            "has one"
        )
    if model.text.config.projection != model.vision.config.projection:
        raise ValueError(
            f"the text tower of {model.name} does not project to the space of its vision tower"
        )
    return model.vision


def nearest_words(
    vectors: Tensor, words: Sequence[str], word_vectors: Tensor
) -> list[tuple[NearWord, ...]]:
    """The `NEAREST` words of each picture or text, the nearest first.

    vectors (N, D), word_vectors (len(words), D), each of length 1.
    """
    found = (vectors @ word_vectors.T).topk(min(NEAREST, len(words)))
    return [
        tuple(NearWord(word=words[i], cosine=c) for i, c in zip(indices, cosines, strict=True))
        for indices, cosines in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    ]
