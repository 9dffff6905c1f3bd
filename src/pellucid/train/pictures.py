"""What the loops draw their batches from: the emoji art, or a folder of one's own pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pellucid.data.emoji import EmojiArt, Mix, compose, core_concepts, with_article
from pellucid.data.imagefolder import Folder

Source = EmojiArt | Folder


def load(art: Path, data: str, size: int) -> Source:
    """The folder `data` with its pictures made `size` wide and high, or without one the `art`.

    ValueError if the folder or the art cannot be read, or `size` is no multiple of 16.
    """
    if not data:
        return EmojiArt.load(art)
    if size < 16 or size % 16:
        raise ValueError(f"size is {size}; a multiple of 16 is wanted, such as 64 or 128")
    return Folder.load(Path(data), size)


def draw(
    source: Source,
    count: int,
    rng: np.random.Generator,
    mix: Mix,
    held: bool = False,
    among: Sequence[int] | None = None,
) -> tuple[Tensor, list[str]]:
    """`count` pictures (B, 3, size, size) in [-1, 1] and their captions.

    `mix`, `held` and `among` are those of `compose`. A folder's pictures are drawn as they are, or
    mirrored; `held` chooses those that it keeps for validation.
    """
    if isinstance(source, Folder):
        return of_folder(source, rng.choice(source.split(held), count), rng)
    samples = [compose(source, rng, mix, held=held, among=among) for _ in range(count)]
    return to_pixels([s.pixels for s in samples]), [s.caption for s in samples]


def distinct(
    source: Source, count: int, rng: np.random.Generator, mix: Mix
) -> tuple[Tensor, list[str]]:
    """At most `count` different pictures; of the emoji, no two begin with the same thing."""
    if isinstance(source, Folder):
        return of_folder(source, rng.permutation(source.split(False))[:count], rng)
    first = rng.permutation(len(source.concepts))[:count]
    samples = [compose(source, rng, mix, concept=int(c)) for c in first]
    return to_pixels([s.pixels for s in samples]), [s.caption for s in samples]


def of_folder(
    folder: Folder, index: np.ndarray, rng: np.random.Generator
) -> tuple[Tensor, list[str]]:
    """These pictures, each mirrored half of the time."""
    mirrored = rng.random(len(index)) < 0.5
    drawn = [
        folder.pixels[i, :, ::-1].copy() if m else folder.pixels[i]
        for i, m in zip(index, mirrored, strict=True)
    ]
    return to_pixels(drawn), [folder.captions[i] for i in index]


def to_pixels(drawn: Sequence[np.ndarray]) -> Tensor:
    """(size, size, 3) uint8 each -> (B, 3, size, size) float32 in [-1, 1]."""
    stacked = torch.stack([torch.from_numpy(p) for p in drawn])
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def prompts(source: Source, count: int) -> list[str]:
    """Fixed prompts to look at while training: core concepts, or a folder's first captions."""
    if isinstance(source, Folder):
        found = list(dict.fromkeys(source.captions))
    else:
        chosen = core_concepts(source) or range(len(source.concepts))
        found = [with_article(source.concepts[i].names[0]) for i in chosen]
    return found[:: max(len(found) // count, 1)][:count]
