"""Scenes of one to four emoji, with captions that say what is where: a source of pictures.

A scene is planned first (`plan`: which things, how large, in which colour, where, and the sentence
that says so) and drawn afterwards (`draw`), so that one plan can be drawn at any size. The pair of
a small and a large picture that a super-resolution network learns from is one plan drawn twice.

The kinds are those of GenEval (Ghosh et al. 2023, arXiv:2310.11513): one thing, two things,
counting, position, colours, and colours of two things. A combination that `data.emoji.held_out`
keeps back is never drawn for training.

Everything is a function of the random generator that it is given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pellucid.data import GroundedPhrase, SourceOptions, mixed
from pellucid.data.emoji import (
    COLORS,
    GROUNDS,
    PAINTS,
    TINTS,
    Composed,
    EmojiArt,
    Sample,
    among_of,
    core_concepts,
    ground,
    held_out,
    paste,
    pick_name,
    tint,
    with_article,
    with_color,
)
from pellucid.nouns import plural

KINDS = ("plain", "tint", "ground", "layout", "pair", "colors", "count", "many")
MOST = 4
"""Things in one scene, at most."""
COUNTS = {2: "two", 3: "three", 4: "four"}

RELATIONS = {
    "and": ("{a} and {b}", "beside"),
    "next to": ("{a} next to {b}", "beside"),
    "left of": ("{a} to the left of {b}", "beside"),
    "right of": ("{a} to the right of {b}", "beside reversed"),
    "above": ("{a} above {b}", "stacked"),
    "below": ("{a} below {b}", "stacked reversed"),
    "on": ("{a} on {b}", "touching"),
    "in front of": ("{a} in front of {b}", "overlapping"),
}
"""The words between two things -> their sentence and how they lie."""

_PLAIN = ("{a}", "{a}", "{a}", "{name}", "a picture of {a}", "{a} emoji")


@dataclass(frozen=True)
class Thing:
    """One emoji of a scene, on a canvas that is 1 wide and 1 high."""

    concept: int
    style: int
    cx: float
    cy: float
    side: float
    mirror: bool = False
    tint: str | None = None
    box: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom, 0..1: where attention to its words belongs. None: unknown."""
    words: tuple[int, int] = (0, 0)
    """Which characters of the caption name it: the first, and the one after the last."""


@dataclass(frozen=True)
class Scene:
    """What to draw, and its sentence. Later things lie on earlier ones."""

    kind: str
    caption: str
    things: tuple[Thing, ...]
    background: str | None = None
    relation: str | None = None

    @property
    def phrases(self) -> tuple[GroundedPhrase, ...]:
        """Of the things whose box is known, for the token loss."""
        return tuple(GroundedPhrase(*t.words, t.box) for t in self.things if t.box is not None)


@dataclass(frozen=True)
class SceneMix:
    """How often each kind is drawn, and what else a scene may have. The weights need not add up."""

    plain: float = 0.34
    tint: float = 0.12
    ground: float = 0.08
    layout: float = 0.06
    pair: float = 0.18
    colors: float = 0.08
    count: float = 0.08
    many: float = 0.06
    styled: float = 0.5
    """Chance that the caption names the style."""
    play: float = 0.3
    """Chance that a thing on its own is shifted and made smaller."""
    mirror: float = 0.2
    on_color: float = 0.15
    """Chance of a coloured ground under several things."""
    core: float = 0.0
    """Chance that the first thing is one of the core concepts; else it is any."""

    @property
    def weights(self) -> np.ndarray:
        given = np.array([getattr(self, kind) for kind in KINDS], np.float64)
        return given / given.sum()


def style_word(caption: str, style: str, rng: np.random.Generator) -> str:
    """The caption with a word for its style."""
    wordings = ("{c}, {s} style", "{c} in {s} style", "{c}, {s}", "{s} style {c}")
    chosen = int(rng.choice(4, p=(0.45, 0.25, 0.15, 0.15)))
    return wordings[chosen].format(c=caption, s=style)


class _Writer:
    """Chooses the words of a caption."""

    def __init__(self, art: EmojiArt, rng: np.random.Generator, held: bool) -> None:
        self.art, self.rng, self.held = art, rng, held

    def name(self, concept: int) -> str:
        return pick_name(self.art.concepts[concept], self.rng)

    def color(self, concept: int, words: Sequence[str] = TINTS) -> str | None:
        """A colour word that may go with a thing here."""
        fit = [w for w in words if held_out(concept, w) == self.held]
        return fit[int(self.rng.integers(len(fit)))] if fit else None

    def phrase(self, concept: int, color: str | None = None, size: str | None = None) -> str:
        """ "a small red cat" """
        name = self.name(concept)
        text = with_color(name, color) if color else with_article(name)
        if size:
            bare = re.sub(r"^an? ", "", text)
            text = with_article(f"{size} {bare}")
        return text


def _span(caption: str, phrase: str, start: int = 0) -> tuple[int, int]:
    """Which characters a phrase takes without its article."""
    at = caption.index(phrase, start)
    skip = re.match(r"(an? |the )?", phrase)
    return at + (skip.end() if skip else 0), at + len(phrase)


def plan(
    art: EmojiArt,
    rng: np.random.Generator,
    mix: SceneMix | None = None,
    kind: str | None = None,
    held: bool = False,
    among: Sequence[int] | None = None,
    concept: int = -1,
) -> Scene:
    """One scene.

    Args:
        mix: how often which kind; `kind` names one instead.
        held: colours, grounds and pairs only in combinations that training never sees.
        among: the concepts to choose from; None is all.
        concept: the first thing; -1 is any.
    """
    mix = SceneMix() if mix is None else mix
    if kind is None:
        kind = KINDS[int(rng.choice(len(KINDS), p=mix.weights))]
    among = range(len(art.concepts)) if among is None else among
    first = among[int(rng.integers(len(among)))] if concept < 0 else concept
    style = int(rng.integers(len(art.styles)))
    writer = _Writer(art, rng, held)
    if kind in ("pair", "colors"):
        scene = _pair(writer, mix, first, style, among, kind == "colors")
    elif kind == "count":
        scene = _count(writer, first, style)
    elif kind == "many":
        scene = _many(writer, first, style, among)
    else:
        scene = _single(writer, mix, first, style, kind)
    if len(scene.things) > 1 and rng.random() < mix.on_color:
        fit = writer.color(first, tuple(COLORS))
        if fit and fit not in [t.tint for t in scene.things]:
            text = f"{scene.caption} on {with_article(fit)} background"
            scene = replace(scene, caption=text, background=fit)
    if rng.random() < mix.styled:
        text = style_word(scene.caption, art.styles[style], rng)
        shift = text.index(scene.caption)
        things = tuple(
            replace(t, words=(t.words[0] + shift, t.words[1] + shift)) for t in scene.things
        )
        scene = replace(scene, caption=text, things=things)
    if "gray" in scene.caption and rng.random() < 0.5:
        scene = replace(scene, caption=scene.caption.replace("gray", "grey"))
    return scene


def _single(writer: _Writer, mix: SceneMix, first: int, style: int, kind: str) -> Scene:
    rng = writer.rng
    side, cx, cy = 1.0, 0.5, 0.5
    mirror = bool(rng.random() < mix.mirror)
    if rng.random() < mix.play:
        side = float(rng.integers(44, 64)) / 64
        room = (1 - side) / 2
        cx, cy = 0.5 + rng.uniform(-room, room), 0.5 + rng.uniform(-room, room)
    thing = Thing(first, style, cx, cy, side, mirror)
    if kind == "tint" and (color := writer.color(first, PAINTS)):
        text = writer.phrase(first, color)
        background = None
        if rng.random() < mix.on_color:
            background = writer.color(first, tuple(c for c in GROUNDS if c != color))
        if background:
            text += f" on {with_article(background)} background"
            thing = replace(thing, side=min(side, 0.875))
        return Scene("tint", text, (replace(thing, tint=color),), background)
    if kind == "ground" and (color := writer.color(first, GROUNDS)):
        text = f"{writer.phrase(first)} on {with_article(color)} background"
        return Scene("ground", text, (replace(thing, side=min(side, 0.875)),), color)
    if kind == "layout":
        return _layout(writer, thing)
    name = writer.name(first)
    wording = _PLAIN[int(rng.integers(len(_PLAIN)))]
    return Scene("plain", wording.format(a=with_article(name), name=name), (thing,))


_CORNERS = {
    "on the left": (0.28, 0.5),
    "on the right": (0.72, 0.5),
    "at the top": (0.5, 0.28),
    "at the bottom": (0.5, 0.72),
    "in the top left corner": (0.28, 0.28),
    "in the top right corner": (0.72, 0.28),
    "in the bottom left corner": (0.28, 0.72),
    "in the bottom right corner": (0.72, 0.72),
}


def _layout(writer: _Writer, thing: Thing) -> Scene:
    """A thing on its own, with its size or its place in the caption."""
    rng = writer.rng
    if rng.random() < 0.4:
        word = ("small", "tiny", "little")[int(rng.integers(3))]
        side = 0.28 if word == "tiny" else 0.45
        text = writer.phrase(thing.concept, size=word)
        cx = cy = 0.5
    else:
        where = list(_CORNERS)[int(rng.integers(len(_CORNERS)))]
        cx, cy = _CORNERS[where]
        side = 0.5
        text = f"{writer.phrase(thing.concept)} {where}"
    cx, cy = cx + rng.uniform(-0.03, 0.03), cy + rng.uniform(-0.03, 0.03)
    thing = replace(thing, cx=cx, cy=cy, side=side, box=_box(cx, cy, side))
    phrase = text.split(" on the ")[0].split(" at the ")[0].split(" in the ")[0]
    return Scene("layout", text, (replace(thing, words=_span(text, phrase)),))


def _box(cx: float, cy: float, side: float) -> tuple[float, float, float, float]:
    half = side / 2
    return max(cx - half, 0), max(cy - half, 0), min(cx + half, 1), min(cy + half, 1)


def _pair(
    writer: _Writer,
    mix: SceneMix,
    first: int,
    style: int,
    among: Sequence[int],
    colored: bool,
) -> Scene:
    rng, held = writer.rng, writer.held
    for _ in range(200):
        second = among[int(rng.integers(len(among)))]
        if second != first and held_out(first, second) == held:
            break
    else:
        return _single(writer, mix, first, style, "plain")
    names = list(RELATIONS)
    relation = names[int(rng.choice(8, p=(0.3, 0.06, 0.12, 0.12, 0.14, 0.1, 0.09, 0.07)))]
    sentence, lie = RELATIONS[relation]
    colors: list[str | None] = [None, None]
    sizes: list[str | None] = [None, None]
    sides = [0.5, 0.5]
    if colored:
        colors[0] = writer.color(first)
        if rng.random() < 0.8:
            others = tuple(c for c in TINTS if c != colors[0])
            colors[1] = writer.color(second, others)
    elif lie != "overlapping" and rng.random() < 0.15:
        small = int(rng.integers(2))
        sizes[small], sizes[1 - small] = "small", "big" if rng.random() < 0.7 else None
        sides[small], sides[1 - small] = 0.34, 0.6
    a, b = writer.phrase(first, colors[0], sizes[0]), writer.phrase(second, colors[1], sizes[1])
    text = sentence.format(a=a, b=b)
    spots = _spots(rng, lie, sides)
    jitter = rng.uniform(-0.03, 0.03, (2, 2))
    things = []
    for i, concept in enumerate((first, second)):
        cx, cy, side = spots[i]
        cx, cy = cx + jitter[i, 0], cy + jitter[i, 1]
        words = _span(text, (a, b)[i], 0 if i == 0 else len(a))
        mirror = bool(rng.random() < mix.mirror)
        thing = Thing(concept, style, cx, cy, side, mirror, colors[i], _box(cx, cy, side), words)
        things.append(thing)
    if lie == "overlapping":  # what is in front is drawn last
        things.reverse()
    return Scene("colors" if colored else "pair", text, tuple(things), relation=relation)


def _spots(
    rng: np.random.Generator, lie: str, sides: Sequence[float]
) -> list[tuple[float, float, float]]:
    """Centre and side of the first and of the second thing."""
    one, two = sides
    if lie == "overlapping":
        left = bool(rng.random() < 0.5)
        front = (0.3 if left else 0.7, 0.72, 0.5)
        back = (0.6 if left else 0.4, 0.38, 0.7)
        return [front, back]
    if lie == "touching":
        return [(0.5, 0.26, 0.46), (0.5, 0.73, 0.54)]
    across = "beside" in lie
    if "reversed" in lie:
        one, two = two, one
    # Two things that share one side of the picture, each in its part of it.
    edge = one / (one + two)
    centres = [min(edge / 2, 1 - one / 2), max(edge + (1 - edge) / 2, two / 2)]
    drift = rng.uniform(-0.08, 0.08)
    spots = [
        (centres[i], 0.5 + drift, side) if across else (0.5 + drift, centres[i], side)
        for i, side in enumerate((one, two))
    ]
    return spots[::-1] if "reversed" in lie else spots


_ROW = {2: 0.5, 3: 0.36, 4: 0.3}
_GROUPS: dict[int, list[list[tuple[float, float]]]] = {
    2: [[(0.25, 0.5), (0.75, 0.5)], [(0.25, 0.5), (0.75, 0.5)], [(0.5, 0.25), (0.5, 0.75)]],
    3: [
        [(0.26, 0.26), (0.74, 0.26), (0.5, 0.74)],
        [(0.5, 0.26), (0.26, 0.74), (0.74, 0.74)],
        [(0.17, 0.5), (0.5, 0.5), (0.83, 0.5)],
    ],
    4: [[(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]],
}
"""Where the middles of two, three or four things are."""


def _group(
    rng: np.random.Generator, count: int
) -> tuple[list[tuple[float, float]], float, str | None]:
    """The middles of some things, their side, and the word for how they lie, if there is one."""
    chosen = _GROUPS[count][int(rng.integers(len(_GROUPS[count])))]
    row = len({y for _, y in chosen}) == 1
    column = len({x for x, _ in chosen}) == 1
    side = _ROW[count] if row and count > 2 else 0.48
    word = "in a row" if row else "in a column" if column else None
    return chosen, side, "in a grid" if count == 4 else word


def _count(writer: _Writer, first: int, style: int) -> Scene:
    """ "three red apples" """
    rng = writer.rng
    count = int(rng.integers(2, 5))
    names = [n for n in writer.art.concepts[first].names if plural(n)]
    if not names:
        return _single(writer, SceneMix(), first, style, "plain")
    name = names[0] if rng.random() < 0.6 else names[int(rng.integers(len(names)))]
    color = writer.color(first) if rng.random() < 0.3 else None
    many = plural(name) or name
    if color:
        kept = [w for w in many.split() if w not in COLORS] or [many]
        many = f"{color} {' '.join(kept)}"
    text = f"{COUNTS[count]} {many}"
    spots, side, word = _group(rng, count)
    if word and rng.random() < 0.25:
        text += f" {word}"
    mirror = bool(rng.random() < 0.2)
    box = (0.0, 0.0, 1.0, 1.0)
    if side < 0.4 or (count == 2 and word):
        xs, ys = [x for x, _ in spots], [y for _, y in spots]
        half = side / 2
        box = (
            max(min(xs) - half, 0),
            max(min(ys) - half, 0),
            min(max(xs) + half, 1),
            min(max(ys) + half, 1),
        )
    things = []
    for i, (x, y) in enumerate(spots):
        x, y = x + rng.uniform(-0.02, 0.02), y + rng.uniform(-0.02, 0.02)
        own = box if i == 0 else None  # one name for all of them
        words = (0, len(f"{COUNTS[count]} {many}"))
        things.append(Thing(first, style, x, y, side, mirror, color, own, words))
    return Scene("count", text, tuple(things))


def _many(writer: _Writer, first: int, style: int, among: Sequence[int]) -> Scene:
    """ "a cat, a dog and a frog" """
    rng = writer.rng
    count = int(rng.integers(3, 5))
    chosen = [first]
    for _ in range(400):
        other = among[int(rng.integers(len(among)))]
        if other not in chosen and held_out(chosen[-1], other) == writer.held:
            chosen.append(other)
        if len(chosen) == count:
            break
    if len(chosen) < count:
        return _single(writer, SceneMix(), first, style, "plain")
    colors = [writer.color(c) if rng.random() < 0.2 else None for c in chosen]
    phrases = [writer.phrase(c, color) for c, color in zip(chosen, colors, strict=True)]
    text = ", ".join(phrases[:-1]) + " and " + phrases[-1]
    spots, side, word = _group(rng, count)
    if word and rng.random() < 0.3:
        text += f" {word}"
    things, start = [], 0
    for concept, color, phrase, (x, y) in zip(chosen, colors, phrases, spots, strict=True):
        words = _span(text, phrase, start)
        start = words[1]
        x, y = x + rng.uniform(-0.02, 0.02), y + rng.uniform(-0.02, 0.02)
        mirror = bool(rng.random() < 0.2)
        box = _box(x, y, side)
        things.append(Thing(concept, style, x, y, side, mirror, color, box, words))
    return Scene("many", text, tuple(things))


def draw(art: EmojiArt, scene: Scene, size: int) -> np.ndarray:
    """The scene as (size, size, 3) uint8. `art` may be of any size; of the scene's own is best."""
    canvas = ground(size, scene.background)
    for thing in scene.things:
        picture = np.asarray(art.pixels[thing.concept, thing.style])
        if thing.tint:
            picture = tint(picture, thing.tint)
        # On whole 64ths of the canvas: a large and a small drawing lie on each other exactly.
        side = round(thing.side * 64) / 64
        left = round((thing.cx - side / 2) * 64) / 64
        top = round((thing.cy - side / 2) * 64) / 64
        x, y = (left + side / 2) * size, (top + side / 2) * size
        paste(canvas, picture, x, y, round(side * size), thing.mirror)
    return canvas.astype(np.uint8)


# ---------------------------------------------------------------- a source for the training loops


@dataclass(frozen=True)
class Scenes(Composed[SceneMix]):
    """Scenes of the concepts `among`; `core` are those that `SceneMix.core` is about."""

    core: Sequence[int] = ()

    def sample(self, rng: np.random.Generator, concept: int, held: bool) -> Sample:
        if concept < 0 and self.core and rng.random() < self.mix.core:
            concept = self.core[int(rng.integers(len(self.core)))]
        scene = plan(self.art, rng, self.mix, held=held, among=self.among, concept=concept)
        # What is in front is drawn last; its name comes first.
        named = sorted(scene.things, key=lambda thing: thing.words)
        return Sample(
            draw(self.art, scene, self.art.size),
            scene.caption,
            tuple(thing.concept for thing in named),
            named[0].style,
            named[0].tint,
            scene.background,
            scene.phrases,
        )


def source(options: SourceOptions, mix: Mapping[str, float]) -> Scenes:
    """Scenes of the art of `options.art`: of all its concepts or, with `core`, of the core ones."""
    art = EmojiArt.load(options.art)
    among = among_of(art, options.core)
    core = [c for c in core_concepts(art) if c in set(among)]
    return Scenes(art, mixed(SceneMix, mix, "scenes"), among, core)
