"""GenEval's rows: pictures that are right count as right, and others do not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pellucid.data import scenes
from pellucid.data.emoji import STYLES, TINTS, Concept, EmojiArt, concept_names
from pellucid.data.scenes import COUNTS, Scene, Thing
from pellucid.evaluate.evaluation import Evaluation
from pellucid.evaluate.metrics import composition, seams
from pellucid.nouns import plural

NAMES = concept_names()
SMALL = 8  # pixels of the thumbnails by which things are known


@pytest.fixture(scope="module")
def art() -> EmojiArt:
    """Squares with a pattern of their own."""
    rng = np.random.default_rng(1)
    pattern = rng.integers(0, 2, (len(NAMES), 1, 4, 1, 4, 1, 1), dtype=np.uint8) * 120 + 30
    shape = (len(NAMES), len(STYLES), 4, 16, 4, 16, 3)
    pixels = np.full((len(NAMES), len(STYLES), 64, 64, 4), 255, np.uint8)
    pixels[..., :3] = np.broadcast_to(pattern, shape).reshape(*pixels.shape[:-1], 3)
    return EmojiArt([Concept("x", (name,)) for name in NAMES], pixels)


class Nearest(nn.Module):
    """Names the thing whose grey pattern is most similar."""

    def __init__(self, art: EmojiArt) -> None:
        super().__init__()
        plain = torch.from_numpy(art.pixels[:, 0, ..., :3].copy()).permute(0, 3, 1, 2)
        self.patterns = self.pattern(plain.float() / 127.5 - 1)

    def pattern(self, pixels: Tensor) -> Tensor:
        grey = nn.functional.adaptive_avg_pool2d(pixels.mean(1, keepdim=True), SMALL).flatten(1)
        return nn.functional.normalize(grey - grey.mean(1, keepdim=True), dim=1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.pattern(pixels) @ self.patterns.T, torch.zeros(len(pixels), 4)


class Artist(Evaluation):
    """Draws what the prompts of the rows say; `swapped` puts things in each other's place."""

    swapped = False

    def thing(self, text: str) -> int:
        by_name = {plural(name): number for name, number in self.numbers.items()} | self.numbers
        name = re.sub("^an? ", "", text)
        if name in by_name:
            return by_name[name]
        name = name.split(" ", 1)[1]  # without its colour
        bare = {re.sub(f"^({'|'.join(TINTS)}) ", "", n): i for n, i in self.numbers.items()}
        return by_name.get(name, bare.get(name, -1))

    def scene(self, text: str) -> Scene:
        first, _, rest = text.partition(" ")
        if first in COUNTS.values():
            count = next(n for n, word in COUNTS.items() if word == first)
            boxes = composition.CELLS[count][-1]
            if self.swapped:
                boxes = boxes[:-1]
            spots = [((a + c) / 2, (b + d) / 2, c - a) for a, b, c, d in boxes]
            things = [Thing(self.thing(rest), 0, *spot) for spot in spots]
            return Scene("count", text, tuple(things))
        words = "|".join(("and", *composition.POSITIONS))
        found = re.fullmatch(f"(.+?) ({words}) (.+)", text)
        assert found
        lie, reverse = composition.POSITIONS.get(found[2], ("beside", False))
        centres = [(0.25, 0.5), (0.75, 0.5)] if lie == "beside" else [(0.5, 0.25), (0.5, 0.75)]
        if reverse != self.swapped:
            centres.reverse()
        phrases = (found[1], found[3])
        tints = [next((w for w in phrase.split() if w in TINTS), None) for phrase in phrases]
        things = [
            Thing(self.thing(phrase), 0, *centre, 0.5, tint=tint)
            for phrase, centre, tint in zip(phrases, centres, tints, strict=True)
        ]
        return Scene("pair", text, tuple(things))

    def pixels(self, prompts: Iterable[str], seed: int = 0) -> Tensor:
        drawn = np.stack([scenes.draw(self.art, self.scene(text), 64) for text in prompts])
        return torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1


class SwappedArtist(Artist):
    swapped = True


def test_right_pictures_are_right(art: EmojiArt) -> None:
    model: Any = None
    rows = composition.measure(Artist(model, art, Nearest(art)), 20)  # type: ignore[arg-type]
    assert rows.pop("two things: both named and a position asked, number") == 16
    assert rows == dict.fromkeys(rows, 1.0)
    assert len(rows) == 8


def test_things_in_the_wrong_place_are_both_named_and_not_right(art: EmojiArt) -> None:
    model: Any = None
    artist = SwappedArtist(model, art, Nearest(art))  # type: ignore[arg-type]
    rows = composition.measure(artist, 20)
    assert rows["two things: both named"] == 1
    assert rows["two things: position right, of those both named"] == 0
    assert rows["counting"] == rows["colours of two things: hues right"] == 0


def test_seams_are_seen_on_the_grid_and_nowhere_else() -> None:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(2, 3, 64, 64, generator=generator)
    small = torch.rand(2, 3, 8, 8, generator=generator)
    blocks = small.repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert seams.seams(smooth, 8) == pytest.approx(1, abs=0.05)
    assert seams.seams(smooth + blocks, 8) > 1.2
    assert seams.seams(smooth + blocks.roll(4, 3).roll(4, 2), 8) < 1


def test_a_part_is_that_part() -> None:
    picture = torch.zeros(3, 64, 64)
    picture[:, 32:, :32] = 1
    assert composition.part(picture, (0, 0.5, 0.5, 1)).min() == 1
    assert composition.part(picture, (0.5, 0, 1, 0.5)).max() == 0
