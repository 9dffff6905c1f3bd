"""Do several things come out as the prompt says? Rows as GenEval has them, and two more.

One thing, two things, counting, position, colours, colours of two things (Ghosh et al. 2023,
arXiv:2310.11513). GenEval finds the things with a detector. Here the judge names parts of the
picture, and the parts are those in which `pellucid.data.scenes` puts things: halves, and the cells
of rows, triangles and a square. A part counts if the judge names the thing in it.

Beside them: how different the pictures of one prompt are (`variety`), and how much the grid of the
latents shows in a picture (`seams`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.data.emoji import TINTS, EmojiArt, held_out, with_article, with_color
from pellucid.data.scenes import COUNTS, plural
from pellucid.evaluate.classifier import Classifier
from pellucid.evaluate.quality import dominant_hue, named

Draw = Callable[[Sequence[str], int], Tensor]
"""(prompts, first seed) -> pictures (B, 3, S, S) in [-1, 1]; prompt i has the seed first + i."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, 0..1."""

HALVES: dict[str, tuple[Box, Box]] = {
    "beside": ((0.0, 0.25, 0.5, 0.75), (0.5, 0.25, 1.0, 0.75)),
    "stacked": ((0.25, 0.0, 0.75, 0.5), (0.25, 0.5, 0.75, 1.0)),
}


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


@dataclass(frozen=True)
class Row:
    """A figure of the table: how many of how many."""

    name: str
    right: int
    of: int

    @property
    def share(self) -> float:
        return self.right / self.of if self.of else float("nan")


def part(picture: Tensor, box: Box, size: int) -> Tensor:
    """A part of (3, S, S), made (3, size, size)."""
    side = picture.shape[-1]
    left, top, right, bottom = (round(edge * side) for edge in box)
    crop = picture[None, :, top:bottom, left:right]
    mode = "area" if crop.shape[-1] > size else "bilinear"
    return F.interpolate(crop, size=(size, size), mode=mode)[0]


def names_in(classifier: Classifier, picture: Tensor, boxes: Sequence[Box], size: int) -> list[int]:
    """What the judge names in each part; -1 in one that is empty."""
    parts = torch.stack([part(picture, box, size) for box in boxes])
    empty = (parts.flatten(1).std(1) < EMPTY).tolist()
    return [-1 if e else n for n, e in zip(named(classifier, parts), empty, strict=True)]


def pairs_of(
    concepts: Sequence[int], count: int, seed: int, held: bool | None = None
) -> list[tuple[int, int]]:
    """Different things two by two; `held` None takes any, else only held-out pairs or only others."""
    rng = np.random.default_rng(seed)
    found: list[tuple[int, int]] = []
    while len(found) < count:
        a, b = (int(c) for c in rng.choice(concepts, 2, replace=False))
        if held is None or held_out(a, b) == held:
            found.append((a, b))
    return found


_POSITIONS = {
    "to the left of": ("beside", False),
    "to the right of": ("beside", True),
    "above": ("stacked", False),
    "below": ("stacked", True),
}


def two_things(
    art: EmojiArt,
    classifier: Classifier,
    draw: Draw,
    concepts: Sequence[int],
    count: int = 80,
    seed: int = 21,
) -> list[Row]:
    """Both named, in any order; and of those with a position, whether it is the right one."""
    pairs = pairs_of(concepts, count, seed)
    words = ["and", *_POSITIONS]
    chosen = [words[i % len(words)] for i in range(count)]
    texts = [
        f"{with_article(art.concepts[a].names[0])} {word} {with_article(art.concepts[b].names[0])}"
        for (a, b), word in zip(pairs, chosen, strict=True)
    ]
    both = placed = asked = 0
    for picture, (a, b), word in zip(draw(texts, 1000 * seed), pairs, chosen, strict=True):
        seen = {lie: names_in(classifier, picture, HALVES[lie], art.size) for lie in HALVES}
        if not any(set(found) == {a, b} for found in seen.values()):
            continue
        both += 1
        if word in _POSITIONS:
            lie, reverse = _POSITIONS[word]
            asked += 1
            placed += seen[lie] == ([b, a] if reverse else [a, b])
    return [Row("two things, both named", both, count), Row("position, of those", placed, asked)]


def counting(
    art: EmojiArt,
    classifier: Classifier,
    draw: Draw,
    concepts: Sequence[int],
    count: int = 60,
    seed: int = 22,
) -> list[Row]:
    """The greatest number of cells that all have the thing in them is the number that is asked."""
    rng = np.random.default_rng(seed)
    able = [c for c in concepts if plural(art.concepts[c].names[0])]
    chosen = [int(c) for c in rng.choice(able, count)]
    numbers = [2 + i % 3 for i in range(count)]
    texts = [
        f"{COUNTS[n]} {plural(art.concepts[c].names[0])}"
        for c, n in zip(chosen, numbers, strict=True)
    ]
    right = dict.fromkeys(COUNTS, 0)
    for picture, c, n in zip(draw(texts, 1000 * seed), chosen, numbers, strict=True):
        seen = 0
        for m, layouts in CELLS.items():
            for boxes in layouts:
                if set(names_in(classifier, picture, boxes, art.size)) == {c}:
                    seen = m
        right[n] += seen == n
    rows = [Row(f"counting {n}", right[n], numbers.count(n)) for n in COUNTS]
    return [*rows, Row("counting", sum(right.values()), count)]


def colors_of_two(
    art: EmojiArt,
    classifier: Classifier,
    draw: Draw,
    concepts: Sequence[int],
    count: int = 60,
    seed: int = 23,
) -> list[Row]:
    """Each thing named, and each in its colour: "a red cat and a blue dog"."""
    rng = np.random.default_rng(seed)
    pairs = pairs_of(concepts, count, seed)
    colors = [tuple(str(c) for c in rng.choice(TINTS, 2, replace=False)) for _ in pairs]
    texts = [
        f"{with_color(art.concepts[a].names[0], one)} and "
        f"{with_color(art.concepts[b].names[0], two)}"
        for (a, b), (one, two) in zip(pairs, colors, strict=True)
    ]
    hue = both = 0
    for picture, pair, wanted in zip(draw(texts, 1000 * seed), pairs, colors, strict=True):
        boxes = HALVES["beside"]
        parts = [part(picture, box, art.size) for box in boxes]
        shown = [dominant_hue(p, p.mean(0) < 0.9) for p in parts]
        right = tuple(shown) == wanted
        hue += right
        both += right and named(classifier, torch.stack(parts)) == list(pair)
    return [
        Row("colours of two things, hues right", hue, count),
        Row("colours of two things, things named too", both, count),
    ]


# ---------------------------------------------------------------- variety and seams


def variety(
    art: EmojiArt, draw: Draw, concepts: Sequence[int], seeds: int = 4, most: int = 40
) -> dict[str, float]:
    """The mean distance between pictures of one prompt, in that between the styles of the art.

    Root mean square over pixels. The share is of prompts for which it is at least a half.
    """
    chosen = list(concepts)[:: max(len(concepts) // most, 1)][:most]
    texts = [with_article(art.concepts[c].names[0]) for c in chosen for _ in range(seeds)]
    drawn = draw(texts, 500)
    if drawn.shape[-1] != art.size:
        drawn = F.interpolate(drawn, size=art.size, mode="area")
    drawn = drawn.flatten(1).view(len(chosen), seeds, -1)
    rgba = torch.from_numpy(np.array(art.pixels[chosen])).float()
    alpha = rgba[..., 3:] / 255
    real = (rgba[..., :3] * alpha + 255 * (1 - alpha)).flatten(2) / 127.5 - 1
    ratios = torch.stack(
        [torch.pdist(d).mean() / torch.pdist(r).mean() for d, r in zip(drawn, real, strict=True)]
    )
    return {
        "distance between seeds, in those between styles: mean": float(ratios.mean()),
        "the same: share of prompts with at least 0.5": float((ratios >= 0.5).float().mean()),
    }


def seams(pixels: Tensor, period: int = 8) -> float:
    """The mean step across the grid of `period` pixels, in the mean step inside of it.

    pixels: (B, 3, H, W). 1 where nothing is to be seen of the grid.
    """
    across = (pixels[..., :, 1:] - pixels[..., :, :-1]).abs().mean((0, 1, 2))
    down = (pixels[..., 1:, :] - pixels[..., :-1, :]).abs().mean((0, 1, 3))
    on, off = [], []
    for steps in (across, down):
        edge = (torch.arange(len(steps)) + 1) % period == 0
        on.append(steps[edge])
        off.append(steps[~edge])
    return float(torch.cat(on).mean() / torch.cat(off).mean())
