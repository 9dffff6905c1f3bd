"""GenEval's rows: pictures that are right count as right, and others do not."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid.data import scenes
from pellucid.data.emoji import STYLES, Concept, EmojiArt
from pellucid.data.scenes import Scene, Thing
from pellucid.evaluate import composition
from pellucid.evaluate.classifier import Classifier

NAMES = ("cat", "dog", "cow", "owl", "key", "car")
COUNTS = {"two": 2, "three": 3, "four": 4}


@pytest.fixture(scope="module")
def art() -> EmojiArt:
    """Squares with a pattern of their own, on nothing."""
    rng = np.random.default_rng(1)
    pattern = rng.integers(0, 2, (len(NAMES), 1, 4, 1, 4, 1, 1)) * 120 + 30
    rgb = np.broadcast_to(pattern, (len(NAMES), len(STYLES), 4, 16, 4, 16, 3))
    pixels = np.full((len(NAMES), len(STYLES), 64, 64, 4), 255, np.uint8)
    pixels[..., :3] = rgb.reshape(len(NAMES), len(STYLES), 64, 64, 3)
    return EmojiArt([Concept("x", (name,)) for name in NAMES], pixels)


class Nearest(Classifier):
    """Names the thing whose grey pattern is nearest."""

    def __init__(self, art: EmojiArt) -> None:
        super().__init__(len(art.concepts), len(art.styles))
        self.art = torch.from_numpy(art.pixels[:, 0, ..., :3].copy()).float().mean(-1) / 127.5 - 1

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        grey = pixels.mean(1)[:, None]
        grey = (grey - grey.mean((2, 3), keepdim=True)).flatten(2)
        own = self.art[None] - self.art.mean((1, 2), keepdim=True)[None]
        return (grey @ own.flatten(2).transpose(1, 2))[:, 0], torch.zeros(len(pixels), 4)


def artist(art: EmojiArt, swap: bool = False) -> composition.Draw:
    """Draws what the prompts of the rows say; `swap` puts things in each other's place."""
    number = {name: i for i, name in enumerate(NAMES)}

    def one(text: str) -> np.ndarray:
        words = re.findall(r"[a-z]+", text)
        many = [w for w in words if w in COUNTS]
        if many:
            thing = next(number[w[:-1]] for w in words if w[:-1] in number)
            boxes = composition.CELLS[COUNTS[many[0]]][-1]
            if swap:
                boxes = boxes[:-1]
            spots = [((a + c) / 2, (b + d) / 2, c - a) for a, b, c, d in boxes]
            things = [Thing(thing, 0, x, y, s) for x, y, s in spots]
        else:
            a, b = (number[w] for w in words if w in number)
            if swap != ("right" in words or "below" in words):
                a, b = b, a
            upright = "above" in words or "below" in words
            spots = [(0.5, 0.25), (0.5, 0.75)] if upright else [(0.25, 0.5), (0.75, 0.5)]
            colors = [w for w in words if w in scenes.TINTS]
            tints = colors if colors else [None, None]
            things = [
                Thing(c, 0, x, y, 0.5, tint=t)
                for c, (x, y), t in zip((a, b), spots, tints, strict=True)
            ]
        return scenes.draw(art, Scene("pair", text, tuple(things)), 64)

    def draw(prompts: Sequence[str], seed: int) -> Tensor:
        drawn = torch.from_numpy(np.stack([one(p) for p in prompts]))
        return drawn.permute(0, 3, 1, 2).float() / 127.5 - 1

    return draw


def test_right_pictures_are_right(art: EmojiArt) -> None:
    judge, every = Nearest(art), range(len(NAMES))
    rows = composition.two_things(art, judge, artist(art), every, 20)
    rows += composition.counting(art, judge, artist(art), every, 12)
    rows += composition.colors_of_two(art, judge, artist(art), every, 10)
    assert {row.name: row.share for row in rows} == {row.name: 1.0 for row in rows}


def test_things_in_the_wrong_place_are_both_named_and_not_right(art: EmojiArt) -> None:
    judge, every = Nearest(art), range(len(NAMES))
    both, placed = composition.two_things(art, judge, artist(art, True), every, 20)
    assert (both.share, placed.share) == (1.0, 0.0)
    *_, count = composition.counting(art, judge, artist(art, True), every, 12)
    assert count.share == 0.0


def test_one_picture_for_all_seeds_has_no_variety(art: EmojiArt) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (6, 4, 64, 64, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    loud = EmojiArt(art.concepts, pixels)
    real = torch.from_numpy(pixels[..., :3].copy()).permute(0, 1, 4, 2, 3).float() / 127.5 - 1

    def same(prompts: Sequence[str], seed: int) -> Tensor:
        return torch.zeros(len(prompts), 3, 64, 64)

    def styles(prompts: Sequence[str], seed: int) -> Tensor:
        return real.flatten(0, 1)

    collapsed = composition.variety(loud, same, range(6))
    varied = composition.variety(loud, styles, range(6))
    assert list(collapsed.values()) == [0.0, 0.0]
    assert list(varied.values()) == [pytest.approx(1.0), 1.0]


def test_seams_are_seen_on_the_grid_and_nowhere_else() -> None:
    smooth = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    blocks = torch.rand(2, 3, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert composition.seams(smooth) == pytest.approx(1, abs=0.05)
    assert composition.seams(smooth + blocks) > 1.2
    assert composition.seams(smooth + blocks.roll(4, 3).roll(4, 2)) < 1


def test_a_part_is_that_part() -> None:
    picture = torch.zeros(3, 64, 64)
    picture[:, 32:, :32] = 1
    assert composition.part(picture, (0, 0.5, 0.5, 1), 64).min() == 1
    assert composition.part(picture, (0.5, 0, 1, 0.5), 16).max() == 0
