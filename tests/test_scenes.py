"""Scenes: what the sentence says is what is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pellucid.data import SourceOptions, emoji, load, scenes
from pellucid.data.emoji import STYLES, Concept, EmojiArt, held_out
from pellucid.nouns import plural


def box_mean(large: np.ndarray, factor: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (H / factor, W / factor, 3)."""
    side = large.shape[0] // factor
    return large.reshape(side, factor, side, factor, 3).mean((1, 3))


NAMES = ("cat", "red apple", "fox", "cherry", "jeans", "cup of coffee", "owl", "mouse")


@pytest.fixture(scope="module")
def art() -> EmojiArt:
    """Discs, each concept of a grey of its own, soft at the rim as real art is."""
    y, x = np.mgrid[:256, :256] / 255 * 2 - 1
    alpha = (np.clip((0.9 - np.hypot(x, y)) * 20, 0, 1) * 255).astype(np.uint8)
    pixels = np.zeros((len(NAMES), len(STYLES), 256, 256, 4), np.uint8)
    pixels[..., 3] = alpha
    for c in range(len(NAMES)):
        pixels[c, ..., :3] = 20 * c + 20
    return EmojiArt([Concept("x", (name,)) for name in NAMES], pixels)


def planned(art: EmojiArt, kind: str | None, count: int = 60) -> list[scenes.Scene]:
    return [scenes.plan(art, np.random.default_rng([7, i]), kind=kind) for i in range(count)]


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_the_words_of_each_thing_name_it(art: EmojiArt, kind: str) -> None:
    for scene in planned(art, kind):
        assert 1 <= len(scene.things) <= scenes.MOST
        for phrase in scene.phrases:
            words = scene.caption[phrase.start : phrase.end]
            assert words and words == words.strip() and "," not in words
            assert all(0 <= edge <= 1 for edge in phrase.box)
            left, top, right, bottom = phrase.box
            assert left < right and top < bottom


def test_spans_are_those_of_the_own_thing(art: EmojiArt) -> None:
    for scene in planned(art, "pair") + planned(art, "many"):
        for thing in scene.things:
            words = scene.caption[slice(*thing.words)]
            name = art.concepts[thing.concept].names[0]
            assert name.split()[-1] in words


@pytest.mark.parametrize("kind", ["pair", "colors", "tint", "ground"])
@pytest.mark.parametrize("held", [False, True])
def test_held_out_combinations(art: EmojiArt, kind: str, held: bool) -> None:
    for i in range(60):
        scene = scenes.plan(art, np.random.default_rng(i), kind=kind, held=held)
        if scene.kind in ("pair", "colors"):
            first, second = (t.concept for t in sorted(scene.things, key=lambda t: t.words))
            assert held_out(first, second) == held
        for thing in scene.things:
            if thing.tint:
                assert held_out(thing.concept, thing.tint) == held


def test_left_is_left_and_above_is_above(art: EmojiArt) -> None:
    for scene in planned(art, "pair", 200):
        a, b = sorted(scene.things, key=lambda t: t.words)
        if scene.relation in ("and", "left of", "next to"):
            assert a.cx < b.cx
        if scene.relation == "right of":
            assert a.cx > b.cx
        if scene.relation in ("above", "on"):
            assert a.cy < b.cy
        if scene.relation == "below":
            assert a.cy > b.cy
        if scene.relation == "in front of":
            assert scene.things[-1] is a or scene.things[-1] == a


def test_a_count_is_the_number_of_things(art: EmojiArt) -> None:
    words = {"two": 2, "three": 3, "four": 4}
    for scene in planned(art, "count", 100):
        found = [n for w, n in words.items() if w in scene.caption.split()]
        assert [len(scene.things)] == (found or [1])


def test_a_plan_drawn_small_is_the_same_drawn_large_and_halved(art: EmojiArt) -> None:
    small_art = EmojiArt(art.concepts, art.pixels[:, :, ::4, ::4])
    for scene in planned(art, None, 40):
        small = scenes.draw(small_art, scene, 64).astype(float)
        large = box_mean(scenes.draw(art, scene, 256), 4).astype(float)
        assert np.abs(small - large).mean() < 4  # of 255; a shift by a pixel would be more


def test_the_same_randomness_gives_the_same_scene(art: EmojiArt) -> None:
    assert planned(art, None, 20) == planned(art, None, 20)


@pytest.mark.parametrize(
    ("name", "many"),
    [
        ("cat", "cats"),
        ("fox", "foxes"),
        ("cherry", "cherries"),
        ("mouse", "mice"),
        ("old man", "old men"),
        ("cup of coffee", "cups of coffee"),
        ("bowl of rice", "bowls of rice"),
        ("knife", "knives"),
        ("glass of milk", "glasses of milk"),
        ("key", "keys"),
        ("jeans", None),
        ("scissors", None),
        ("earth", None),
    ],
)
def test_plurals(name: str, many: str | None) -> None:
    assert plural(name) == many


def test_scenes_are_a_source(art: EmojiArt, tmp_path: Path) -> None:
    art.save(tmp_path / "art.npz")
    options = SourceOptions(tmp_path / "art.npz", source="scenes")
    source = load(options, {"plain": 0, "many": 1, "core": 0.5})
    assert (source.size, source.classes) == (256, NAMES)
    batch = source.draw(6, np.random.default_rng(0))
    assert batch.pixels.shape == (6, 3, 256, 256)
    for caption, label, phrases in zip(batch.captions, batch.labels, batch.phrases, strict=True):
        first, *_ = phrases
        assert NAMES[label].split()[-1] in caption[first.start : first.end]
    assert any(len(phrases) > 2 for phrases in batch.phrases)
    again = source.draw(6, np.random.default_rng(0))
    assert again.captions == batch.captions
    assert (again.pixels == batch.pixels).all()
    assert source.draw(99, np.random.default_rng(0), distinct=True).labels.unique().numel() == 8


def test_core_concepts_come_more_often() -> None:
    pixels = np.full((3, len(STYLES), 64, 64, 4), 255, np.uint8)
    art = EmojiArt([Concept("x", (name,)) for name in ("cat", "dog", "fox")], pixels)
    source = scenes.Scenes(art, scenes.SceneMix(core=0.9), range(3), core=(1,))
    labels = source.draw(60, np.random.default_rng(0)).labels
    assert (labels == 1).float().mean() > 0.75


def test_a_recipe_for_another_source(art: EmojiArt, tmp_path: Path) -> None:
    art.save(tmp_path / "art.npz")
    options = SourceOptions(tmp_path / "art.npz")
    assert scenes.source(options, {"tint": 0.5}).mix.tint == 0.5
    for source in (scenes.source, emoji.source):
        with pytest.raises(
            ValueError, match=r"the recipe is for another source .* kinds of_no_kind"
        ):
            source(options, {"of_no_kind": 0.5})
