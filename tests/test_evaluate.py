"""The measuring instruments: who draws what is asked gets full marks, who draws something else none.

Random patterns stand for the art, and a look-up of patterns for the judge, so that what is right is
known.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.data.emoji import (
    COLORS,
    PAINTS,
    TINTS,
    Concept,
    EmojiArt,
    concept_names,
    ground,
    paste,
    tint,
    with_article,
    with_color,
)
from pellucid.evaluate import metrics
from pellucid.evaluate import report as reports
from pellucid.evaluate.evaluation import Evaluation, read_prompts
from pellucid.evaluate.metrics import (
    METRICS,
    attributes,
    concepts,
    judge,
    novelty,
    variety,
    vocabulary,
)
from pellucid.plugins import discover

SIZE, RIM = 64, 8
LUMA = torch.tensor([0.299, 0.587, 0.114])


@pytest.fixture(scope="module")
def art() -> EmojiArt:
    """Every thing in every style is a pattern of 6x6 greys with nothing around it."""
    names = concept_names()
    greys = np.random.default_rng(0).integers(20, 220, (len(names), 4, 6, 6), dtype=np.uint8)
    pixels = np.zeros((len(names), 4, SIZE, SIZE, 4), np.uint8)
    inner = slice(RIM, SIZE - RIM)
    pixels[:, :, inner, inner, :3] = greys.repeat(8, 2).repeat(8, 3)[..., None]
    pixels[:, :, inner, inner, 3] = 255
    return EmojiArt([Concept("x", (name,)) for name in names], pixels)


class Judge(nn.Module):
    """Knows every pattern: pixels (B, 3, 64, 64) -> logits of things and of styles."""

    def __init__(self, art: EmojiArt) -> None:
        super().__init__()
        plain = torch.from_numpy(art.pixels[..., :3].copy()).float().permute(0, 1, 4, 2, 3)
        self.shape = plain.shape[:2]
        self.patterns = self.pattern(plain.flatten(0, 1) / 127.5 - 1)

    def pattern(self, pixels: Tensor) -> Tensor:
        luma = torch.einsum("bchw,c->bhw", pixels, LUMA)[:, None, RIM:-RIM, RIM:-RIM]
        greys = F.avg_pool2d(luma, 8).flatten(1)
        return F.normalize(greys - greys.mean(1, keepdim=True), dim=1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        likeness = (self.pattern(pixels) @ self.patterns.T).unflatten(1, self.shape)
        return likeness.amax(2), likeness.amax(1)


@pytest.fixture(scope="module")
def known(art: EmojiArt) -> Any:
    return Judge(art)


class Painter(Evaluation):
    """Draws what a prompt of the evaluation says, or the thing `off` places further in the list."""

    off = 0

    def words(self) -> dict[str, tuple[str, str | None]]:
        words: dict[str, tuple[str, str | None]] = {}
        for kind in ("common", "everyday"):
            for p in read_prompts(kind):
                words[p.text] = (p.concept, None)
                words |= {with_color(p.concept, w): (p.concept, w) for w in PAINTS}
        return words | {with_article(name): (name, None) for name in self.numbers}

    def thing(self, text: str, style: int) -> np.ndarray:
        name, color = self.words()[text]
        rgba = self.art.pixels[(self.numbers[name] + self.off) % len(self.numbers), style]
        return rgba if color is None else tint(rgba, color)

    def picture(self, text: str) -> Image.Image:
        text, _, style = text.removesuffix(" style").partition(", ")
        number = self.art.styles.index(style) if style else 0
        if self.off:
            number = (number + 1) % len(self.art.styles)
        text, _, color = text.removesuffix(" background").partition(" on ")
        word = color.split()[-1] if color else None
        if word and self.off:
            word = TINTS[(TINTS.index(word) + 1) % len(TINTS)]
        canvas = ground(SIZE, word)
        paste(canvas, self.thing(text, number), SIZE / 2, SIZE / 2, SIZE, False)
        return Image.fromarray(canvas.astype(np.uint8))

    def pictures(self, prompts: Iterable[str], seed: int = 0, **fields: Any) -> Any:
        return [self.picture(text) for text in prompts]


class WrongPainter(Painter):
    off = 1


@pytest.mark.parametrize("kind", ["common", "everyday"])
def test_things(kind: str, art: EmojiArt, known: Any) -> None:
    model: Any = None
    rate, drawn, misses = concepts.recognised(Painter(model, art, known), kind)
    assert (rate, misses) == (1, [])
    assert len(drawn) == len(read_prompts(kind)) >= 45
    rate, _, misses = concepts.recognised(WrongPainter(model, art, known), kind)
    assert rate == 0
    assert len(misses) == len(drawn)


def test_attributes(art: EmojiArt, known: Any) -> None:
    model: Any = None
    right = attributes.measure(Painter(model, art, known))
    for name in ("tint: right hue", "tint: concept kept", "ground: right hue", "style obeyed"):
        assert right[name] == 1, name
    assert right["ground: concept kept"] == 1
    assert (right["shade: no hue"], right["shade: concept kept"]) == (1, 1)
    wrong = attributes.measure(WrongPainter(model, art, known))
    for name in ("tint: concept kept", "ground: right hue", "ground: concept kept", "style obeyed"):
        assert wrong[name] == 0, name
    assert wrong["shade: concept kept"] == 0


def test_every_concept(art: EmojiArt, known: Any) -> None:
    model: Any = None
    right = vocabulary.measure(Painter(model, art, known))
    assert (right["every concept: named"], right["every concept: missed"]) == (1, [])
    assert right["every concept: number"] == len(art.concepts)
    assert vocabulary.measure(WrongPainter(model, art, known))["every concept: named"] == 0


def test_one_picture_for_all_seeds_has_no_variety(art: EmojiArt, known: Any) -> None:
    model: Any = None

    class Varied(Painter):
        """Draws the next style for each next prompt."""

        def pictures(self, prompts: Iterable[str], seed: int = 0, **fields: Any) -> Any:
            names = [(text, art.styles[i % 4]) for i, text in enumerate(prompts)]
            return [self.picture(f"{text}, {style} style") for text, style in names]

    same = variety.measure(Painter(model, art, known), 10)
    assert list(same.values()) == [0, 0]
    varied = variety.measure(Varied(model, art, known), 10)
    assert list(varied.values()) == [pytest.approx(1), 1]


def test_a_copy_is_found_out(art: EmojiArt, known: Any) -> None:
    model: Any = None
    found = novelty.measure(Painter(model, art, known), 10)
    assert found["distance to the nearest training picture, median"] < 1e-3
    assert found["distance between styles of a concept in training, mean"] > 0.1


@pytest.mark.parametrize("color", TINTS)
def test_dominant_hue(color: str) -> None:
    picture = torch.tensor(COLORS[color]).float().view(3, 1, 1).expand(3, 8, 8) / 127.5 - 1
    where = torch.ones(8, 8, dtype=torch.bool)
    assert attributes.dominant_hue(picture, where) == color
    half = torch.cat([picture[:, :4], torch.ones(3, 4, 8)], 1)  # the rest is white
    assert attributes.dominant_hue(half, where) == color
    assert attributes.dominant_hue(torch.zeros(3, 8, 8), where) is None
    assert attributes.dominant_hue(picture, ~where) is None


def test_the_judge_is_judged(art: EmojiArt, known: Any) -> None:
    real, model = "judge, real pictures", None
    found = judge.measure(Painter(model, art, known), 30)  # type: ignore[arg-type]
    assert found[f"{real}: concept, plain"] == found[f"{real}: style"] == 1
    assert found[f"{real}: concept, tint"] == 1
    wrong = EmojiArt(art.concepts, np.roll(art.pixels, 1, (0, 1)))
    found = judge.measure(Painter(model, wrong, known), 30)  # type: ignore[arg-type]
    assert found[f"{real}: concept, plain"] == found[f"{real}: style"] == 0


NEW_METRIC = """
from PIL import Image

def measure(evaluation):
    return {"concepts of the art": len(evaluation.art.concepts), "odd": [str(evaluation.model)],
            "best": "a frog",             "dot": Image.new("RGB", (1, 1))}
"""


def test_a_metric_is_one_new_file(
    art: EmojiArt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found by its name, chosen, and what it returns is in all that is written."""
    art.save(tmp_path / "art.npz")
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path / "new")])
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "counted.py").write_text(NEW_METRIC)
    found = discover("pellucid.evaluate.metrics")
    assert set(found) == {*METRICS, "counted"}
    monkeypatch.setattr(reports, "METRICS", found)
    monkeypatch.setattr(reports.classifiers, "trained", lambda path, art: Judge(art))
    model: Any = "a model"
    out = tmp_path / "out"
    results = reports.report(model, tmp_path / "art.npz", Path("-"), out, ["counted"])
    assert results == {
        "concepts of the art": len(art.concepts),
        "odd": ["a model"],
        "best": "a frog",
    }
    assert json.loads((out / "results.json").read_text("utf-8")) == results
    table = (out / "results.md").read_text("utf-8")
    assert "**odd**: a model." in table and "| best | a frog |" in table
    assert (out / "dot.png").is_file()
    with pytest.raises(ValueError, match=r"unknown metric 'conted'.*nearest first: counted"):
        reports.report(model, tmp_path / "art.npz", Path("-"), out, ["conted"])
