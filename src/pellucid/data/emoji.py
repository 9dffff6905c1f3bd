"""The captioned emoji pictures: four families of openly licensed art, rendered from SVG.

The art comes from the npm packages ``@iconify-json/{fluent-emoji-flat,fluent-emoji,noto,twemoji}``,
names and keywords from ``emojibase-data``; ``concepts.tsv`` next to this file lists the emoji that
are learned, with everyday names, and ``extra_concepts.tsv`` further ones. Three steps:

* ``render``: SVG -> one array of RGBA pictures, (concepts, styles, size, size, 4);
* ``caption``: what a picture shows -> a sentence, in one of many wordings;
* ``compose``: a picture from parts with alpha -- shifted, mirrored, tinted, on a coloured ground,
  two things side by side or one above the other -- with the sentence that says so.

Everything drawn is a function of the random generator that it is given.
"""

from __future__ import annotations

import io
import json
import re
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from pellucid.colors import COLORS
from pellucid.data import (
    CHUNK,
    Batch,
    GroundedPhrase,
    SourceOptions,
    digest,
    mixed,
    spread,
    to_pixels,
)
from pellucid.files import new_file
from pellucid.lexicon import bare
from pellucid.nouns import with_article

EMOJIBASE = "emojibase-data/en/data.json"
"""The names of emoji, in the folder of npm packages."""

STYLES = {
    "flat": "fluent-emoji-flat",
    "3d": "fluent-emoji",
    "noto": "noto",
    "twemoji": "twemoji",
}
"""Style word in a prompt -> the icon set of that style."""

TINTS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
"""Colours with a hue."""

SHADES = {
    "gray": ((0.0, 0.65, 1.0), (0.08, 0.55, 0.92)),
    "black": ((0.0, 0.4, 0.65, 1.0), (0.02, 0.09, 0.2, 0.7)),
    "white": ((0.0, 0.3, 0.5, 0.65, 1.0), (0.1, 0.45, 0.78, 0.89, 0.98)),
}
"""Colours without a hue -> lightness before and after painting, both 0 to 1. What is dark or light in a
thing stays so, or a black cat would have no eyes."""

PAINTS = (*TINTS, "brown", *SHADES)
"""Colours that a thing can be painted in."""

GROUNDS = (*COLORS, "white")
"""Colours of a background."""


@dataclass(frozen=True)
class Concept:
    """One thing that can be drawn."""

    emoji: str
    names: tuple[str, ...]
    """Everyday names, the commonest first."""
    keywords: tuple[str, ...] = ()
    """Further words that emojibase gives for it and for no other concept here."""
    slug: str = ""
    """Its file name in the icon sets."""


@dataclass
class EmojiArt:
    """Rendered concepts: ``pixels`` is (concepts, styles, size, size, 4) uint8, straight alpha."""

    concepts: list[Concept]
    pixels: np.ndarray
    styles: list[str] = field(default_factory=lambda: list(STYLES))

    @property
    def size(self) -> int:
        return int(self.pixels.shape[2])

    def on_white(self, concepts: Sequence[int] | slice = slice(None)) -> Tensor:
        """These concepts in every style, on white as they are drawn for training: (N, 3, size, size)
        in [-1, 1]."""
        drawn = []
        for picture in self.pixels[concepts].reshape(-1, self.size, self.size, 4):
            canvas = ground(self.size, None)
            paste(canvas, picture, self.size / 2, self.size / 2, self.size, False)
            drawn.append(canvas.astype(np.uint8))
        return to_pixels(drawn)

    def save(self, path: Path) -> None:
        """Write to a file that `load` reads. ValueError if the disk refuses."""
        concepts = json.dumps([[c.emoji, c.names, c.keywords, c.slug] for c in self.concepts])
        with new_file(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, pixels=self.pixels, concepts=concepts, styles=self.styles)

    @classmethod
    def load(cls, path: Path) -> EmojiArt:
        """Read what ``save`` wrote. ValueError if the file is missing or of another kind."""
        if not path.is_file():
            raise ValueError(f"{path}: no rendered emoji there; run `pellucid data emoji` first")
        if zipfile.is_zipfile(path):  # for others numpy would only report a possible pickle
            with np.load(path, allow_pickle=False) as file:
                if {"concepts", "pixels", "styles"} <= set(file):
                    concepts = [
                        Concept(emoji, tuple(names), tuple(keywords), slug)
                        for emoji, names, keywords, slug in json.loads(str(file["concepts"]))
                    ]
                    return cls(concepts, file["pixels"], [str(s) for s in file["styles"]])
        raise ValueError(
            f"{path} is not a file of rendered emoji, as `pellucid data emoji` writes it"
        )


def _slug(label: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_only.replace("'", "")).strip("-")


_NOT_A_THING = re.compile(
    r"[^a-z]|^.{1,2}$|..(ing|ed|ous|ful|ive|ly|al|ic|ical|able|less|ish|tive)$"
)
"""Not in plain letters, too short, or with the ending of a verb or an adjective."""


def names_a_thing(keyword: str, label: str) -> bool:
    """Whether "a {keyword}" reads as the name of what `label` names. Strict: better too few.

    ``not_names.txt`` lists words of emojibase's that are no name for the thing: moods, verbs, what
    goes with it. The first words of a compound ("gas" of "gas pump") do not name it either.
    """
    if _NOT_A_THING.search(keyword) or keyword in _read("not_names.txt").split():
        return False
    return keyword not in re.split(r"[^a-z]+", label.lower())[:-1]


@cache
def _read(name: str) -> str:
    """A text file next to this one."""
    return resources.files("pellucid.data").joinpath(name).read_text(encoding="utf-8")


def _rows(extra: bool = False) -> list[list[str]]:
    """The lines of ``concepts.tsv``, then those of ``extra_concepts.tsv``: emoji, names, set."""
    found = []
    for name in ("concepts.tsv", "extra_concepts.tsv")[: 1 + extra]:
        lines = _read(name).splitlines()
        found += [line.split("\t") for line in lines if line and not line.startswith("#")][1:]
    return found


def concept_names() -> list[str]:
    """The commonest name of every concept, in the order of ``concepts.tsv``."""
    return [names.split(", ")[0] for _, names, _ in _rows()]


def synonyms() -> list[tuple[str, str]]:
    """The two commonest names of every concept that has two."""
    each = [names.split(", ") for _, names, _ in _rows()]
    return [(names[0], names[1]) for names in each if len(names) > 1]


def phrases() -> tuple[list[str], list[tuple[str, str]]]:
    """`concept_names` and `synonyms` with their articles: "a frog"."""
    pairs = [(with_article(name), with_article(other)) for name, other in synonyms()]
    return [with_article(name) for name in concept_names()], pairs


def read_concepts(emojibase: Path, extra: bool = False) -> list[Concept]:
    """``concepts.tsv`` with the slugs and unambiguous keywords of emojibase's ``data.json``.

    extra: those of ``extra_concepts.tsv`` as well.
    """
    table = {bare(e["emoji"]): e for e in json.loads(emojibase.read_text(encoding="utf-8"))}
    entries = [
        (emoji, tuple(names.split(", ")), table[bare(emoji)]) for emoji, names, _ in _rows(extra)
    ]
    named = {name for _, names, _ in entries for name in names}
    counts: dict[str, int] = {}
    for _, _, entry in entries:
        for tag in entry.get("tags", []):
            counts[tag] = counts.get(tag, 0) + 1
    return [
        Concept(
            emoji,
            names,
            # A keyword that two concepts share ("food") names neither of them.
            tuple(
                t
                for t in entry.get("tags", [])
                if counts[t] == 1 and t not in named and names_a_thing(t, entry["label"])
            ),
            _slug(entry["label"]),
        )
        for emoji, names, entry in entries
    ]


def core_concepts(art: EmojiArt) -> list[int]:
    """The concepts of the set "core": few enough for a model that is trained on a CPU."""
    core = {emoji for emoji, _, kind in _rows() if kind == "core"}
    return [i for i, concept in enumerate(art.concepts) if concept.emoji in core]


def render(packages: Path, size: int, extra: bool = False) -> EmojiArt:
    """Draw every concept in every style.

    Args:
        packages: the ``node_modules`` folder with the icon sets and ``emojibase-data``.
        size: pixels on a side.
        extra: the concepts of ``extra_concepts.tsv`` as well.

    Raises:
        ValueError: a package or a picture is missing.
    """
    import resvg_py

    emojibase = packages / EMOJIBASE
    if not emojibase.is_file():
        raise ValueError(f"{packages}: emojibase-data is missing; `make art` fetches it")
    concepts = read_concepts(emojibase, extra)
    pixels = np.zeros((len(concepts), len(STYLES), size, size, 4), np.uint8)
    for s, package in enumerate(STYLES.values()):
        path = packages / "@iconify-json" / package / "icons.json"
        if not path.is_file():
            raise ValueError(f"{path}: the icon set is missing; `make art` fetches it")
        icons = json.loads(path.read_text(encoding="utf-8"))
        for c, concept in enumerate(concepts):
            name = concept.slug
            if name not in icons["icons"]:
                name = icons.get("aliases", {}).get(name, {}).get("parent", name)
            if name not in icons["icons"]:
                raise ValueError(f"{package} has no picture called {concept.slug!r}")
            icon = icons["icons"][name]
            w = icon.get("width", icons.get("width", 16))
            h = icon.get("height", icons.get("height", 16))
            svg = (
                f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
                f' viewBox="0 0 {w} {h}" width="{w}" height="{h}">{icon["body"]}</svg>'
            )
            # Drawn at twice the size and halved: thin strokes keep their weight.
            png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * size, height=2 * size)
            picture = Image.open(io.BytesIO(bytes(png)), formats=("PNG",)).convert("RGBA")
            pixels[c, s] = np.asarray(picture.resize((size, size), Image.Resampling.BOX))
    return EmojiArt(concepts, pixels)


# ---------------------------------------------------------------- captions


_PLAIN = ("{a}", "{a}", "{name}", "a picture of {a}", "{a} emoji")
_STYLED = ("{a}, {style} style", "{style} style {name}", "{a} in {style} style", "{a}, {style}")


def pick_name(concept: Concept, rng: np.random.Generator) -> str:
    """One of its names: the commonest half of the time, any keyword one time in six."""
    chance = rng.random()
    if chance < 1 / 6 and concept.keywords:
        return concept.keywords[rng.integers(len(concept.keywords))]
    if chance < 0.5:
        return concept.names[rng.integers(len(concept.names))]
    return concept.names[0]


def caption(name: str, style: str | None, rng: np.random.Generator) -> str:
    """A sentence for a thing, with its style if one is given."""
    wordings = _PLAIN if style is None else _STYLED
    return wordings[rng.integers(len(wordings))].format(
        a=with_article(name), name=name, style=style or ""
    )


def with_color(name: str, color: str) -> str:
    """ "a rabbit", "blue" -> "a blue rabbit"; a colour already in the name is replaced."""
    words = [w for w in name.split() if w not in COLORS] or [name]  # an orange stays an orange
    return with_article(f"{color} {' '.join(words)}")


# ---------------------------------------------------------------- pictures


def tint(rgba: np.ndarray, color: str) -> np.ndarray:
    """Paint a picture in one colour of `PAINTS`, keeping its light and shade. (h, w, 4) uint8 -> the
    same."""
    luma = rgba[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    # Most of a thing gets the colour itself, be the thing dark or pale.
    most = np.median(luma[rgba[..., 3] > 127]) if (rgba[..., 3] > 127).any() else 0.65
    luma = np.interp(luma, (0, np.clip(most, 0.15, 0.95), 1), (0, 0.65, 1)).astype(np.float32)
    if color in SHADES:
        gray = np.interp(luma, *SHADES[color])[..., None].repeat(3, -1)
        return np.concatenate([(gray * 255).astype(np.uint8), rgba[..., 3:]], -1)
    target = np.array(COLORS[color], np.float32) / 255
    # Dark to black below the colour's own lightness, light to white above it.
    low = np.clip(luma / 0.65, 0, 1)[..., None] * target
    high = np.clip((luma - 0.65) / 0.35, 0, 1)[..., None]
    rgb = low * (1 - 0.75 * high) + 0.75 * high
    return np.concatenate([(rgb * 255).astype(np.uint8), rgba[..., 3:]], -1)


def paste(
    canvas: np.ndarray, rgba: np.ndarray, cx: float, cy: float, side: int, mirror: bool
) -> None:
    """Put a picture on a canvas (h, w, 3) float32 0..255, centred at (cx, cy), `side` wide."""
    picture = Image.fromarray(rgba)
    if mirror:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if picture.width != side:
        # Premultiplied, so that transparent black does not bleed into the edges.
        picture = picture.convert("RGBa").resize((side, side), Image.Resampling.BILINEAR)
        picture = picture.convert("RGBA")
    size = canvas.shape[0]
    left, top = round(cx - side / 2), round(cy - side / 2)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, size), min(top + side, size)
    part = np.asarray(picture, np.float32)[y0 - top : y1 - top, x0 - left : x1 - left]
    alpha, behind = part[..., 3:] / 255, canvas[y0:y1, x0:x1]
    colors = outlined(part[..., :3], alpha, behind, max(round(size / 64), 1))
    canvas[y0:y1, x0:x1] = behind * (1 - alpha) + colors * alpha


def outlined(colors: np.ndarray, alpha: np.ndarray, behind: np.ndarray, width: int) -> np.ndarray:
    """A thing's colours (h, w, 3), 0..255, darker along its edge where what lies behind it has nearly
    the same colour: a white cloud on white paper.

    alpha: (h, w, 1), 0..1. width: of the line, in pixels.
    """
    # Outside of the picture is not outside of the thing.
    around = np.pad((alpha[..., 0] * 255).astype(np.uint8), width, constant_values=255)
    least = np.asarray(Image.fromarray(around).filter(ImageFilter.MinFilter(2 * width + 1)))
    edge = 1 - least[width:-width, width:-width].astype(np.float32) / 255
    near = np.clip(1 - np.abs(colors - behind).max(-1) / 64, 0, 1)
    return colors * (1 - 0.35 * edge * near)[..., None]


def ground(size: int, color: str | None) -> np.ndarray:
    """An empty canvas: white, or one of `GROUNDS`."""
    value = COLORS.get(color or "white", (255, 255, 255))
    return np.full((size, size, 3), value, np.float32)


@dataclass(frozen=True)
class Mix:
    """How often `compose` draws which kind of picture; the rest are plain pictures of one thing."""

    tinted: float = 0.12
    on_color: float = 0.12
    pair: float = 0.06
    play: float = 1.0
    """Chance that a single thing is shifted, scaled and mirrored, and one of two things mirrored; else
    it is drawn as it was made."""
    styled: float = 0.5
    """Chance that the caption names the style."""


LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
ABOVE, BELOW = (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)


@dataclass(frozen=True)
class Sample:
    """A training picture: (size, size, 3) uint8 and what it shows."""

    pixels: np.ndarray
    caption: str
    concepts: tuple[int, ...]
    style: int
    tint: str | None = None
    background: str | None = None
    phrases: tuple[GroundedPhrase, ...] = ()
    """Of each of two things; a thing on its own has the whole picture and needs none."""


def held_out(first: int, second: int | str) -> bool:
    """True for one combination in eight: those are never drawn for training."""
    return zlib.crc32(f"{first}/{second}".encode()) % 8 == 0


def compose(
    art: EmojiArt,
    rng: np.random.Generator,
    mix: Mix | None = None,
    concept: int = -1,
    held: bool = False,
    among: Sequence[int] | None = None,
) -> Sample:
    """Draw one picture.

    Args:
        mix: how often which kind of picture.
        concept: the (first) thing to draw; -1 is any.
        held: draw tints, grounds and pairs only in combinations that training never sees.
            Plain pictures of one thing are no combination and are drawn in any case.
        among: the concepts to choose from; None is all.
    """
    mix = Mix() if mix is None else mix
    among = range(len(art.concepts)) if among is None else among
    first = among[int(rng.integers(len(among)))] if concept < 0 else concept
    style = int(rng.integers(len(art.styles)))
    word = art.styles[style] if rng.random() < mix.styled else None
    ending = f", {word} style" if word else ""
    name = pick_name(art.concepts[first], rng)
    cx, cy, side, mirror = _play(art.size, mix.play, rng)
    chance = rng.random()

    def allowed(words: Sequence[str]) -> str | None:
        fit = [w for w in words if held_out(first, w) == held]
        return fit[rng.integers(len(fit))] if fit else None

    picture, canvas = art.pixels[first, style], ground(art.size, None)
    if chance < mix.tinted and (color := allowed(PAINTS)):
        paste(canvas, tint(picture, color), cx, cy, side, mirror)
        text = with_color(name, color) + ending
        return Sample(canvas.astype(np.uint8), text, (first,), style, tint=color)
    if chance < mix.tinted + mix.on_color and (color := allowed(GROUNDS)):
        canvas = ground(art.size, color)
        paste(canvas, picture, cx, cy, min(side, round(art.size * 0.875)), mirror)
        text = f"{with_article(name)} on {with_article(color)} background{ending}"
        return Sample(canvas.astype(np.uint8), text, (first,), style, background=color)
    pair = mix.tinted + mix.on_color <= chance < mix.tinted + mix.on_color + mix.pair
    if pair and any(s != first and held_out(first, s) == held for s in among):
        second = first
        while second == first or held_out(first, second) != held:
            second = among[int(rng.integers(len(among)))]
        text, phrases = _two_names(name, pick_name(art.concepts[second], rng), rng)
        for thing, phrase in zip((first, second), phrases, strict=True):
            left, top, right, bottom = phrase.box
            x, y = art.size * (left + right) / 2, art.size * (top + bottom) / 2
            flip = bool(rng.random() < mix.play / 2)
            paste(canvas, art.pixels[thing, style], x, y, round(art.size / 2), flip)
        drawn = canvas.astype(np.uint8)
        return Sample(drawn, text + ending, (first, second), style, phrases=phrases)
    paste(canvas, picture, cx, cy, side, mirror)
    return Sample(canvas.astype(np.uint8), caption(name, word, rng), (first,), style)


def _play(size: int, chance: float, rng: np.random.Generator) -> tuple[float, float, int, bool]:
    """Where a single thing is drawn: its centre, its side in pixels, whether it is mirrored."""
    if rng.random() >= chance:
        return size / 2, size / 2, size, False
    # Most things are drawn to fill the picture, as prompts will ask for them.
    side = size if rng.random() < 0.5 else int(rng.integers(size * 3 // 4, size))
    room = (size - side) / 2
    cx, cy = size / 2 + rng.uniform(-room, room), size / 2 + rng.uniform(-room, room)
    return cx, cy, side, bool(rng.random() < 0.5)


def _two_names(
    first: str, second: str, rng: np.random.Generator
) -> tuple[str, tuple[GroundedPhrase, GroundedPhrase]]:
    """ "a frog and a star", or "a frog above a star", and where each of the two is drawn."""
    word, boxes = ("and", (LEFT, RIGHT)) if rng.random() < 0.5 else ("above", (ABOVE, BELOW))
    start = with_article(first)
    text = f"{start} {word} {with_article(second)}"
    return text, (
        GroundedPhrase(len(start) - len(first), len(start), boxes[0]),
        GroundedPhrase(len(text) - len(second), len(text), boxes[1]),
    )


# ---------------------------------------------------------------- a source for the training loops

AnyMix = TypeVar("AnyMix")


@dataclass(frozen=True)
class Composed(Generic[AnyMix]):
    """A `Source` that composes its pictures on demand, of the concepts `among`."""

    art: EmojiArt
    mix: AnyMix
    among: Sequence[int]

    @property
    def size(self) -> int:
        return self.art.size

    @property
    def identity(self) -> str:
        art = self.art
        return digest(art.pixels, art.concepts, art.styles, self.mix, self.among)

    @property
    def classes(self) -> tuple[str, ...]:
        """The commonest name of each concept."""
        return tuple(self.art.concepts[i].names[0] for i in self.among)

    def sample(self, rng: np.random.Generator, concept: int, held: bool) -> Sample:
        """One picture. concept: the (first) thing; -1 is any."""
        raise NotImplementedError

    def draw(
        self, count: int, rng: np.random.Generator, *, held: bool = False, distinct: bool = False
    ) -> Batch:
        """`distinct`: every first object is a different one; of several, only the first."""
        first = rng.permutation(self.among)[:count].tolist() if distinct else [-1] * count
        samples = [self.sample(rng, c, held) for c in first]
        numbers = {concept: number for number, concept in enumerate(self.among)}
        return Batch(
            to_pixels([s.pixels for s in samples]),
            [s.caption for s in samples],
            torch.tensor([numbers[s.concepts[0]] for s in samples]),
            [s.phrases for s in samples],
        )

    def pool(self, count: int, seed: int, *, held: bool = False) -> Iterator[Batch]:
        for start in range(0, count, CHUNK):
            rng = np.random.default_rng([seed, start, 3])
            yield self.draw(min(CHUNK, count - start), rng, held=held)

    def vocabulary(self, count: int, rng: np.random.Generator) -> Sequence[str]:
        return [self.sample(rng, -1, False).caption for _ in range(count)]

    def prompts(self, count: int) -> list[str]:
        """The names of core concepts, if the art has any."""
        chosen = core_concepts(self.art) or range(len(self.art.concepts))
        return spread([with_article(self.art.concepts[i].names[0]) for i in chosen], count)


class Emoji(Composed[Mix]):
    """Pictures of one or two things, as `compose` draws them."""

    def sample(self, rng: np.random.Generator, concept: int, held: bool) -> Sample:
        return compose(self.art, rng, self.mix, concept, held, self.among)


def among_of(art: EmojiArt, core: bool) -> list[int]:
    """The concepts to learn: all of the art or, with `core`, the core ones if it has any."""
    return (core_concepts(art) if core else []) or list(range(len(art.concepts)))


def source(options: SourceOptions, mix: Mapping[str, float]) -> Emoji:
    """The art of `options.art`: all its concepts or, with `core`, the core ones if it has any."""
    art = EmojiArt.load(options.art)
    return Emoji(art, mixed(Mix, mix, "emoji"), among_of(art, options.core))
