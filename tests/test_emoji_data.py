"""The captioned emoji: compositions, captions, tints and the table of concepts.

Noise stands for the art here, so no icon set is needed.
"""

from __future__ import annotations

import colorsys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from pellucid.data import emoji
from pellucid.data.emoji import (
    COLORS,
    TINTS,
    Concept,
    EmojiArt,
    Mix,
    compose,
    ground,
    held_out,
    tint,
)

NAMES = (
    "frog",
    "owl",
    "orange",
    "jeans",
    "cactus",
    "red heart",
    "unicorn",
    "star",
    "stack of books",
)
TINTED, GROUNDS = Mix(tinted=1, on_color=0, pair=0), Mix(tinted=0, on_color=1, pair=0)
PAIRS, PLAIN = Mix(tinted=0, on_color=0, pair=1), Mix(tinted=0, on_color=0, pair=0)


@pytest.fixture(scope="module")
def art() -> EmojiArt:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (len(NAMES), 4, 16, 16, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    return EmojiArt([Concept("x", (name,)) for name in NAMES], pixels)


def draw(art: EmojiArt, mix: Mix, count: int = 300, held: bool = False) -> list[emoji.Sample]:
    rng = np.random.default_rng(1)
    return [compose(art, rng, mix, held=held) for _ in range(count)]


def combination(sample: emoji.Sample) -> tuple[int, int | str] | None:
    if len(sample.concepts) == 2:
        return sample.concepts[0], sample.concepts[1]
    word = sample.tint or sample.background
    return None if word is None else (sample.concepts[0], word)


def test_the_same_seed_draws_the_same(art: EmojiArt) -> None:
    mix = Mix(0.3, 0.3, 0.3)
    for a, b in zip(draw(art, mix, 50), draw(art, mix, 50), strict=True):
        assert a.caption == b.caption
        np.testing.assert_array_equal(a.pixels, b.pixels)
    other = compose(art, np.random.default_rng(2), mix)
    assert not np.array_equal(other.pixels, draw(art, mix, 1)[0].pixels)


@pytest.mark.parametrize("mix", [TINTED, GROUNDS, PAIRS])
@pytest.mark.parametrize("held", [False, True])
def test_held_out_combinations_are_kept_apart(art: EmojiArt, mix: Mix, held: bool) -> None:
    drawn = [c for s in draw(art, mix, held=held) if (c := combination(s)) is not None]
    assert len(set(drawn)) >= 3
    assert all(held_out(*c) == held for c in drawn)


def test_about_one_combination_in_eight_is_held_out() -> None:
    held = [held_out(c, word) for c in range(380) for word in COLORS]
    assert 0.1 < np.mean(held) < 0.15


def test_one_concept_alone_cannot_be_paired(art: EmojiArt) -> None:
    alone = EmojiArt(art.concepts[:1], art.pixels[:1])
    assert compose(alone, np.random.default_rng(0), PAIRS).concepts == (0,)


def test_captions_tell_what_is_drawn(art: EmojiArt) -> None:
    for s in draw(art, TINTED):
        assert s.tint in s.caption.split(",")[0].split()
    for s in draw(art, GROUNDS):
        assert f"{s.background} background" in s.caption
    for s in draw(art, PAIRS):
        first, second = (NAMES[c] for c in s.concepts)
        head, _, tail = s.caption.partition(" and " if " and " in s.caption else " above ")
        assert first in head
        assert second in tail
        assert [s.caption[p.start : p.end] for p in s.phrases] == [first, second]


def test_two_things_are_where_their_places_say() -> None:
    colors = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    pixels = np.zeros((3, 1, 16, 16, 4), np.uint8)
    pixels[..., 3] = 255
    for thing, color in zip(pixels, colors, strict=True):
        thing[..., :3] = color
    art = EmojiArt([Concept("x", (name,)) for name in NAMES[:3]], pixels, ["flat"])
    boxes = set()
    for s in draw(art, PAIRS, 50):
        for concept, place in zip(s.concepts, s.phrases, strict=True):
            left, top, right, bottom = (round(16 * edge) for edge in place.box)
            part = s.pixels[top:bottom, left:right].reshape(-1, 3)
            seen = {tuple(map(int, color)) for color in np.unique(part, axis=0)}
            assert seen == {colors[concept], (255, 255, 255)}
            boxes.add(place.box)
    assert len(boxes) == 4


def test_style_is_told_or_not(art: EmojiArt) -> None:
    for mix in (TINTED, GROUNDS, PAIRS, PLAIN):
        always = Mix(mix.tinted, mix.on_color, mix.pair, styled=1)
        never = Mix(mix.tinted, mix.on_color, mix.pair, styled=0)
        for s in draw(art, always, 100):
            assert art.styles[s.style] in s.caption
        for s in draw(art, never, 100):
            assert not any(style in s.caption for style in art.styles)


def test_ground_shows_around_the_thing(art: EmojiArt) -> None:
    for s in draw(art, GROUNDS, 60):
        assert s.background is not None
        corners = [tuple(map(int, s.pixels[y, x])) for y in (0, -1) for x in (0, -1)]
        assert tuple(map(int, ground(1, s.background)[0, 0])) in corners


@pytest.mark.parametrize("color", TINTS)
def test_tint_gives_the_hue_and_keeps_alpha(art: EmojiArt, color: str) -> None:
    picture = art.pixels[0, 0].copy()
    picture[..., 3] = np.arange(256, dtype=np.uint8).reshape(16, 16)
    painted = tint(picture, color)
    np.testing.assert_array_equal(painted[..., 3], picture[..., 3])
    mean = painted[..., :3].reshape(-1, 3).mean(0) / 255
    hue, _, saturation = colorsys.rgb_to_hsv(*map(float, mean))
    wanted = colorsys.rgb_to_hsv(*(v / 255 for v in COLORS[color]))[0]
    assert min(abs(hue - wanted), 1 - abs(hue - wanted)) < 0.03
    assert saturation > 0.2


def test_tint_keeps_light_and_shade() -> None:
    ramp = np.full((1, 256, 4), 255, np.uint8)
    ramp[0, :, :3] = np.arange(256, dtype=np.uint8)[:, None]
    painted = tint(ramp, "blue")[0, :, :3].astype(int).sum(-1)
    assert (np.diff(painted) >= 0).all()
    assert painted[-1] > painted[128] > painted[0]


@pytest.mark.parametrize(
    ("name", "color", "wanted"),
    [
        ("frog", "red", "a red frog"),
        ("red heart", "blue", "a blue heart"),
        ("orange", "red", "a red orange"),
        ("owl", "orange", "an orange owl"),
        ("jeans", "pink", "pink jeans"),
        ("cactus", "pink", "a pink cactus"),
    ],
)
def test_colour_before_a_name(name: str, color: str, wanted: str) -> None:
    assert emoji.with_color(name, color) == wanted


@pytest.mark.parametrize(
    "wanted", ["a frog", "an owl", "a cactus", "a unicorn", "jeans", "a stack of books", "a bus"]
)
def test_articles(wanted: str) -> None:
    assert emoji.with_article(wanted.removeprefix("a ").removeprefix("an ")) == wanted


def test_a_keyword_must_name_the_thing() -> None:
    assert emoji.names_a_thing("escargot", "snail")
    assert emoji.names_a_thing("rucksack", "backpack")
    for keyword, label in [
        ("european", "castle"),
        ("running", "running shoe"),
        ("gas", "gas pump"),
        ("+1", "thumbs up"),
        ("two-hump", "two-hump camel"),
        ("haunting", "ghost"),
    ]:
        assert not emoji.names_a_thing(keyword, label), keyword


def test_save_and_load(art: EmojiArt, tmp_path: Path) -> None:
    art.save(tmp_path / "art.npz")
    again = EmojiArt.load(tmp_path / "art.npz")
    assert again.concepts == art.concepts
    assert again.styles == art.styles
    np.testing.assert_array_equal(again.pixels, art.pixels)
    assert [p.name for p in tmp_path.iterdir()] == ["art.npz"]
    with pytest.raises(ValueError, match="no rendered emoji"):
        EmojiArt.load(tmp_path / "gone.npz")
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", pixels=art.pixels)
    for name in ("text.npz", "other.npz"):
        with pytest.raises(ValueError, match=f"{name} is not a file of rendered emoji"):
            EmojiArt.load(tmp_path / name)


def test_render_without_the_packages(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="emojibase-data is missing"):
        emoji.render(tmp_path, 16)


def test_table_of_concepts() -> None:
    text = resources.files("pellucid.data").joinpath("concepts.tsv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines[0] == "emoji\tnames\tset"
    rows = [line.split("\t") for line in lines[1:]]
    assert len(rows) == 380
    assert all(len(row) == 3 and row[2] in ("core", "more") for row in rows)
    emojis = [emoji.bare(row[0]) for row in rows]
    names = [name for row in rows for name in row[1].split(", ")]
    assert len(set(emojis)) == len(emojis)
    assert len(set(names)) == len(names)
    assert all(name == name.strip().lower() and name for name in names)


def test_a_pale_thing_has_an_outline_on_a_pale_ground_alone() -> None:
    thing = np.zeros((64, 64, 4), np.uint8)
    thing[16:48, 16:48] = (250, 250, 255, 255)
    drawn = {}
    for color in (None, "blue"):
        drawn[color] = emoji.ground(64, color)
        emoji.paste(drawn[color], thing, 32, 32, 64, False)
    on_white, on_blue = drawn[None], drawn["blue"]
    edge = np.concatenate([on_white[16, 16:48], on_white[47, 16:48], on_white[16:48, 16]])
    assert edge.max() < 190
    assert np.array_equal(on_white[17:47, 17:47], np.full((30, 30, 3), (250, 250, 255)))
    assert on_white[:16].min() == 255
    assert np.array_equal(on_blue[16:48, 16:48], np.full((32, 32, 3), (250, 250, 255)))


def test_a_thing_that_is_cut_by_the_picture_has_no_outline_there() -> None:
    thing = np.full((64, 64, 4), 255, np.uint8)
    canvas = emoji.ground(64, None)
    emoji.paste(canvas, thing, 32, 32, 64, False)
    assert canvas.min() == 255
