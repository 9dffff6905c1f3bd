"""Do several things come out as the prompt says? The rows of GenEval.

One thing, two things, counting, position, colours, colours of two things (Ghosh et al. 2023,
arXiv:2310.11513), of the common things; one thing and colours are rows of `concepts` and
`attributes`. GenEval finds the things with a detector. Here the judge names parts of the picture:
those in which `data.scenes` draws things, which are halves, and the cells of rows, triangles and a
square. A part counts if the judge names the thing in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.data.emoji import TINTS, with_article, with_color
from pellucid.data.scenes import COUNTS
from pellucid.evaluate.evaluation import Evaluation, read_prompts
from pellucid.evaluate.metrics.attributes import dominant_hue
from pellucid.nouns import plural

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, 0..1."""

HALVES: dict[str, tuple[Box, Box]] = {
    "beside": ((0.0, 0.25, 0.5, 0.75), (0.5, 0.25, 1.0, 0.75)),
    "stacked": ((0.25, 0.0, 0.75, 0.5), (0.25, 0.5, 0.75, 1.0)),
}
POSITIONS = {
    "to the left of": ("beside", False),
    "to the right of": ("beside", True),
    "above": ("stacked", False),
    "below": ("stacked", True),
}
"""Words -> which halves, and whether the first thing is in the second one."""


def _square(x: float, y: float, side: float) -> Box:
    return x - side / 2, y - side / 2, x + side / 2, y + side / 2


CELLS: dict[int, list[tuple[Box, ...]]] = {
    2: [HALVES["beside"], HALVES["stacked"]],
    3: [
        tuple(_square(x, y, 0.5) for x, y in ((0.25, 0.25), (0.75, 0.25), (0.5, 0.75))),
        tuple(_square(x, y, 0.5) for x, y in ((0.5, 0.25), (0.25, 0.75), (0.75, 0.75))),
        tuple(_square(x, 0.5, 1 / 3) for x in (1 / 6, 0.5, 5 / 6)),
    ],
    4: [tuple(_square(x, y, 0.5) for y in (0.25, 0.75) for x in (0.25, 0.75))],
}
"""Where two, three or four things of one picture may be."""

EMPTY = 0.05
"""The deviation of the pixels of a part, range -1 to 1, below which nothing is in it."""


def measure(evaluation: Evaluation, count: int = 60) -> dict[str, float]:
    """Fractions of `count` prompts of each row that are right."""
    return (
        two_things(evaluation, count)
        | counting(evaluation, count)
        | colors_of_two(evaluation, count)
    )


def part(picture: Tensor, box: Box) -> Tensor:
    """A part of (3, S, S), enlarged to (3, S, S)."""
    side = picture.shape[-1]
    left, top, right, bottom = (round(edge * side) for edge in box)
    crop = picture[None, :, top:bottom, left:right]
    return F.interpolate(crop, size=(side, side), mode="bilinear")[0]


def names_in(evaluation: Evaluation, picture: Tensor, boxes: Sequence[Box]) -> list[int]:
    """What the judge names in each part of (3, S, S); -1 in one that is empty."""
    parts = torch.stack([part(picture, box) for box in boxes])
    empty = (parts.flatten(1).std(1) < EMPTY).tolist()
    return [-1 if e else n for n, e in zip(evaluation.things(parts), empty, strict=True)]


def pairs(evaluation: Evaluation, count: int, seed: int) -> list[tuple[int, int]]:
    """Different common things, two by two."""
    rng = np.random.default_rng(seed)
    common = [evaluation.numbers[p.concept] for p in read_prompts("common")]
    drawn = (rng.choice(common, 2, replace=False).tolist() for _ in range(count))
    return [(first, second) for first, second in drawn]


def two_things(evaluation: Evaluation, count: int, seed: int = 21) -> dict[str, float]:
    """Both named, in any order; and of those with a position, whether it is the right one."""
    concepts = evaluation.art.concepts
    asked = pairs(evaluation, count, seed)
    words = ["and", *POSITIONS]
    chosen = [words[i % len(words)] for i in range(count)]
    texts = [
        f"{with_article(concepts[a].names[0])} {word} {with_article(concepts[b].names[0])}"
        for (a, b), word in zip(asked, chosen, strict=True)
    ]
    both, placed = 0, []
    pictures = evaluation.pixels(texts, seed=1000 * seed)
    for picture, (a, b), word in zip(pictures, asked, chosen, strict=True):
        seen = {lie: names_in(evaluation, picture, halves) for lie, halves in HALVES.items()}
        if not any(set(found) == {a, b} for found in seen.values()):
            continue
        both += 1
        if word in POSITIONS:
            lie, reverse = POSITIONS[word]
            placed.append(seen[lie] == ([b, a] if reverse else [a, b]))
    return {
        "two things: both named": both / count,
        "two things: position right, of those both named": share(placed),
        "two things: both named and a position asked, number": float(len(placed)),
    }


def counting(evaluation: Evaluation, count: int, seed: int = 22) -> dict[str, float]:
    """The greatest number of cells that all have the thing in them is the number that was asked."""
    rng = np.random.default_rng(seed)
    names = [(evaluation.numbers[p.concept], plural(p.concept)) for p in read_prompts("common")]
    able = [(number, many) for number, many in names if many]
    chosen = [able[i] for i in rng.integers(len(able), size=count)]
    numbers = [2 + i % len(COUNTS) for i in range(count)]
    texts = [f"{COUNTS[n]} {many}" for (_, many), n in zip(chosen, numbers, strict=True)]
    right: dict[int, list[bool]] = {n: [] for n in COUNTS}
    pictures = evaluation.pixels(texts, seed=1000 * seed)
    for picture, (thing, _), n in zip(pictures, chosen, numbers, strict=True):
        seen = 0
        for m, layouts in CELLS.items():
            if any(set(names_in(evaluation, picture, boxes)) == {thing} for boxes in layouts):
                seen = m
        right[n].append(seen == n)
    rows = {f"counting: {COUNTS[n]}": share(found) for n, found in right.items()}
    return rows | {"counting": share([hit for found in right.values() for hit in found])}


def colors_of_two(evaluation: Evaluation, count: int, seed: int = 23) -> dict[str, float]:
    """Each thing in its colour, and named as well: "a red cat and a blue dog"."""
    rng = np.random.default_rng(seed)
    concepts = evaluation.art.concepts
    asked = pairs(evaluation, count, seed)
    colors = [rng.choice(TINTS, 2, replace=False).tolist() for _ in asked]
    texts = [
        " and ".join(
            with_color(concepts[thing].names[0], color)
            for thing, color in zip(pair, two, strict=True)
        )
        for pair, two in zip(asked, colors, strict=True)
    ]
    hues, both = [], []
    pictures = evaluation.pixels(texts, seed=1000 * seed)
    for picture, pair, two in zip(pictures, asked, colors, strict=True):
        parts = torch.stack([part(picture, box) for box in HALVES["beside"]])
        hues.append([dominant_hue(p, p.mean(0) < 0.9) for p in parts] == two)
        both.append(hues[-1] and evaluation.things(parts) == list(pair))
    return {
        "colours of two things: hues right": share(hues),
        "colours of two things: hues right, things named": share(both),
    }


def share(found: Sequence[bool]) -> float:
    """The fraction of them that is true; not a number if there are none."""
    return float(np.mean(found)) if found else float("nan")
