"""CLIP, opened: how near pictures and texts are to each other, and the words nearest to a picture.

Both towers end in one space, in which a picture and its caption point the same way (Radford et al.
2021). What a prompt can say to the diffusion model is what this space can tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pellucid.clip import VisionTower
from pellucid.html.records import Picture, Record
from pellucid.images.pixels import fit, to_tensor
from pellucid.model import Model

BATCH = 64
MOST_ITEMS = 100
NEAREST = 10


class Near(Record):
    """A word and the cosine between it and a picture."""

    word: str
    cosine: float


class Seen(Record):
    """A picture, as the vision tower has it, and the words that are nearest to it."""

    name: str
    size: tuple[int, int]
    """Width and height as it came; its middle is scaled to a square."""
    picture: Picture
    nearest: tuple[Near, ...]


class Similarity(Record):
    """Pictures and texts in one space."""

    model: str
    pictures: tuple[Seen, ...]
    texts: tuple[str, ...]
    left_out: tuple[str | None, ...]
    """The end of each text that was too long for the model; None if all of it was read."""
    words: int
    """How many words the nearest were looked for in."""
    cosines: tuple[tuple[float, ...], ...]
    """(n, n) for the n pictures and texts in this order."""


@torch.no_grad()
def look(
    model: Model,
    pictures: Sequence[tuple[str, Image.Image]],
    texts: Sequence[str] = (),
    words: Sequence[str] = (),
) -> Similarity:
    """Compare all with all. pictures: their names and themselves; words: for the nearest ones.

    Raises ValueError: a model without a vision tower, or whose text tower does not project to the
    space of pictures; no picture; more than `MOST_ITEMS` in all.
    """
    tower = vision(model)
    if not 1 <= len(pictures) <= MOST_ITEMS - len(texts):
        raise ValueError(
            f"there are {len(pictures)} pictures and {len(texts)} texts; at least 1 picture and at "
            f"most {MOST_ITEMS} in all are wanted"
        )
    side = tower.config.image_size
    squares = [fit(image, side, side) for _, image in pictures]
    seen = pointing(tower(torch.stack([to_tensor(square) for square in squares]).to(_first(tower))))
    read = directions(model, texts)
    everything = torch.cat([seen, read])
    nearest = nearest_words(seen, words, directions(model, words))
    return Similarity(
        model=model.name,
        pictures=tuple(
            Seen(name=name, size=image.size, picture=square, nearest=near)
            for (name, image), square, near in zip(pictures, squares, nearest, strict=True)
        ),
        texts=tuple(texts),
        left_out=tuple(model.tokenizer.cut(text) for text in texts),
        words=len(words),
        cosines=tuple(tuple(line) for line in (everything @ everything.T).tolist()),
    )


def vision(model: Model) -> VisionTower:
    """The tower that sees pictures in the space of texts; ValueError if there is none."""
    if model.vision is None:
        raise ValueError(
            f"{model.name} has no vision tower, which CLIP sees pictures with; the model that "
            "ships with Pellucid has one"
        )
    if model.text.config.projection != model.vision.config.projection:
        raise ValueError(
            f"the text tower of {model.name} does not project to the space of its vision tower"
        )
    return model.vision


def directions(model: Model, texts: Sequence[str]) -> Tensor:
    """(N, projection), each of length 1. What does not fit into the context is left out."""
    parts = [torch.empty(0, model.text.config.projection or 0)]
    for start in range(0, len(texts), BATCH):
        # Only as long as need be: the pooled vector of a causal tower is the same.
        ids = model.tokenizer(texts[start : start + BATCH], padded=False)
        projected = model.text(ids.to(_first(model.text).device)).projected
        assert projected is not None
        parts.append(pointing(projected))
    return torch.cat(parts)


def nearest_words(seen: Tensor, words: Sequence[str], read: Tensor) -> list[tuple[Near, ...]]:
    """The `NEAREST` words of each picture, the nearest first.

    seen (N, D), read (len(words), D), each of length 1.
    """
    found = (seen @ read.T).topk(min(NEAREST, len(words)))
    return [
        tuple(Near(word=words[i], cosine=c) for i, c in zip(places, cosines, strict=True))
        for places, cosines in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    ]


def pointing(vectors: Tensor) -> Tensor:
    """The same directions with length 1, float32 on the CPU."""
    return F.normalize(vectors.float().cpu(), dim=-1)


def _first(tower: torch.nn.Module) -> Tensor:
    return next(tower.parameters())
