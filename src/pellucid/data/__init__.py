"""Sources of captioned pictures. Each file in this folder is one; its name is the source's name.

A new source is a new file with a function ``source(options, mix)`` that returns a `Source`. For
pictures that fit in memory that is a `Pictures` made of their pixels and captions.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from pellucid.plugins import choose, discover

T = TypeVar("T")

SOURCES = discover(__name__)
VALIDATION = 20
"""One picture in this many is kept for validation."""
CHUNK = 250  # pictures of a pool that are made at a time


def setting(default: Any, help: str) -> Any:
    """A field of an options dataclass, with the help that ``pellucid train --settings`` shows."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class SourceOptions:
    """Where a training loop gets its pictures from."""

    art: Path = setting(Path("runs/art64.npz"), "The rendered emoji.")  # noqa: RUF009
    _: KW_ONLY
    data: str = setting("", "A folder of pictures with captions to learn from instead of the art.")
    source: str = setting(
        "",
        "The kind of pictures: emoji or scenes (of `art`), imagefolder (of `data`), mnist, or the "
        'name of another file in pellucid/data. "" is imagefolder if `data` is given, else emoji.',
    )
    size: int = setting(64, "Pixels on a side that pictures are scaled to; the art keeps its own.")
    core: bool = setting(False, "Of the art, learn only the core concepts.")


class GroundedPhrase(NamedTuple):
    """Words of a caption that name a thing, and where in the picture that thing is."""

    start: int
    """First character of the words in the caption."""
    end: int
    """The character after the last."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom, as fractions of the picture, 0..1."""


class Batch(NamedTuple):
    """Some captioned pictures."""

    pixels: Tensor  # (B, 3, size, size) in [-1, 1]
    captions: list[str]
    labels: Tensor  # (B,) int64, index of the class in `Source.classes`
    phrases: list[tuple[GroundedPhrase, ...]]  # of each caption; empty where the boxes are unknown


class Source(Protocol):
    """Captioned pictures to learn from: a fixed set of them, or pictures composed on demand.

    All randomness comes from the arguments. `held` chooses what is kept for validation.
    """

    @property
    def size(self) -> int:
        """Pixels on a side."""

    @property
    def identity(self) -> str:
        """A text that is different where other pictures or captions would be drawn (for caches)."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class of picture."""

    def draw(
        self, count: int, rng: np.random.Generator, *, held: bool = False, distinct: bool = False
    ) -> Batch:
        """`count` pictures at random.

        distinct: no two of the same thing; fewer than `count` if there are not as many.
        """

    def pool(self, count: int, seed: int, *, held: bool = False) -> Iterator[Batch]:
        """Batches of pictures to keep: all of a fixed set, or `count` that are composed."""

    def vocabulary(self, count: int, rng: np.random.Generator) -> Sequence[str]:
        """Captions that a tokenizer is trained on: all of a fixed set, or `count`."""

    def prompts(self, count: int) -> list[str]:
        """At most `count` fixed prompts whose pictures show how far the training is."""


@dataclass
class Pictures:
    """A fixed set of pictures in memory, as a `Source`: ``pixels`` is (N, size, size, 3) uint8."""

    pixels: np.ndarray
    captions: list[str]
    mirror: bool = True
    """Half of the pictures that are drawn are mirrored."""

    @property
    def size(self) -> int:
        return int(self.pixels.shape[1])

    @cached_property
    def identity(self) -> str:
        return digest(self.pixels, self.captions)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.captions)))

    def split(self, held: bool) -> list[int]:
        """The pictures to learn from, or those kept for validation (all, if fewer than 20)."""
        everything = range(len(self.captions))
        if len(everything) < VALIDATION:
            return list(everything)
        return [i for i in everything if (i % VALIDATION == 0) == held]

    def draw(
        self, count: int, rng: np.random.Generator, *, held: bool = False, distinct: bool = False
    ) -> Batch:
        index = self.split(held)
        chosen = rng.permutation(index)[:count] if distinct else rng.choice(index, count)
        mirrored = rng.random(len(chosen)) < 0.5
        return self.batch(chosen.tolist(), mirrored.tolist())

    def pool(self, count: int, seed: int, *, held: bool = False) -> Iterator[Batch]:
        """Each picture once and, if `mirror`, once more mirrored."""
        flips = (False, True) if self.mirror else (False,)
        entries = [(i, flip) for i in self.split(held) for flip in flips]
        for start in range(0, len(entries), CHUNK):
            index, mirrored = zip(*entries[start : start + CHUNK], strict=True)
            yield self.batch(index, mirrored)

    def batch(self, index: Sequence[int], mirrored: Sequence[bool]) -> Batch:
        """These pictures, some of them mirrored (if `mirror` allows it)."""
        drawn = [
            self.pixels[i, :, ::-1].copy() if flip and self.mirror else self.pixels[i]
            for i, flip in zip(index, mirrored, strict=True)
        ]
        captions = [self.captions[i] for i in index]
        numbers = {name: number for number, name in enumerate(self.classes)}
        labels = torch.tensor([numbers[caption] for caption in captions])
        return Batch(to_pixels(drawn), captions, labels, [()] * len(captions))

    def vocabulary(self, count: int, rng: np.random.Generator) -> Sequence[str]:
        return self.captions

    def prompts(self, count: int) -> list[str]:
        return spread(list(dict.fromkeys(self.captions)), count)


def load(
    options: SourceOptions, mix: Mapping[str, float] | None = None, multiple: int = 1
) -> Source:
    """The source that the options name.

    Args:
        mix: how often a source that composes its pictures draws which kind; see `emoji.Mix`.
        multiple: what the size of the pictures must be a multiple of.

    Raises:
        ValueError: no such source; a wrong size; pictures that cannot be read.
    """
    name = options.source or ("imagefolder" if options.data else "emoji")
    choose(name, SOURCES, "source")
    if options.size < multiple or options.size % multiple:
        raise ValueError(f"size must be a multiple of {multiple}, such as 64, got {options.size}")
    found: Source = SOURCES[name].source(options, mix or {})
    return found


def mixed(mix: Callable[..., T], shares: Mapping[str, float], source: str) -> T:
    """How a source mixes its kinds of pictures, from the shares of a recipe. ValueError if these are
    of another source."""
    if unknown := sorted(shares.keys() - inspect.signature(mix).parameters.keys()):
        raise ValueError(
            f"the recipe is for another source than {source}, which has no pictures of the kinds "
            f"{', '.join(unknown)}; choose another source or another recipe"
        )
    return mix(**shares)


def to_pixels(pictures: Iterable[np.ndarray]) -> Tensor:
    """(size, size, 3) uint8 each -> (B, 3, size, size) float32 in [-1, 1]."""
    stacked = torch.stack([torch.from_numpy(picture) for picture in pictures])
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def digest(pixels: np.ndarray, *facts: object) -> str:
    """A short text that changes with the pixels and with the `repr` of the facts."""
    return f"{pixels.shape} {zlib.crc32(pixels.tobytes())} {zlib.crc32(repr(facts).encode())}"


def spread(names: Sequence[str], count: int) -> list[str]:
    """At most `count` of the names, evenly spread over all of them."""
    return list(names[:: max(len(names) // count, 1)][:count])
