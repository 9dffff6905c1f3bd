"""Several things in one prompt: what they are, and where each belongs.

A small network draws one thing well and several badly: each of them gets a few positions of the
latents. Where a model lists what it has learned, a prompt such as "a cat and two red apples" is
therefore cut into one text for each thing, and every thing is drawn in a region of its own, at the
size that the network was trained on (`regions`, after Bar-Tal et al. 2023, "MultiDiffusion",
arXiv:2302.08113). This module reads the prompt and arranges the regions; it is plain text work.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from pellucid.lexicon import COUNTS, PLAIN_WORDS, Lexicon
from pellucid.nouns import singulars, with_article

MOST = 9
"""Things that are arranged, at most."""

Cell = tuple[float, float]
"""Left and top of a thing's place, in cells: a cell is as large as what the model draws."""

NUMBERS = {"one": 1} | {word: count for count, word in COUNTS.items()}
# Words that count without a number: what a person would draw for them.
QUANTITIES = {"pair": 2, "couple": 2, "few": 3, "several": 5, "bunch": 5, "group": 5, "herd": 5}
QUANTITIES |= {"flock": 5, "many": 9, "lot": 9, "lots": 9, "ten": 10, "eleven": 11, "twelve": 12}
QUANTITIES |= {"dozen": 12, "dozens": 24, "hundred": 100, "hundreds": 100}
QUANTITIES |= {"thousand": 1000, "thousands": 1000}
_ARTICLES = {"a", "an", "the", "some", "my", "your", "his", "her", "our", "their"}
# Words between two things -> how these lie. The longest that is found counts.
_ABOVE = "on top of|on|above|over|riding|rides|in|inside|sitting on|sits on|standing on|behind"
_BELOW = "below|under|underneath|beneath|in front of|wearing|wears"
_LEFT = (
    "to the left of|on the left of|left of|next to|beside|besides|near|with|holding|and|and also"
)
_RIGHT = "to the right of|on the right of|right of"
LIES: dict[str, str] = {
    words: lie
    for lie, each in (("above", _ABOVE), ("below", _BELOW), ("left", _LEFT), ("right", _RIGHT))
    for words in each.split("|")
}
_SHAPES = {"row": "row", "line": "row", "column": "column", "stack": "column"}
_JOINT = re.compile(rf"\b({'|'.join(sorted(LIES, key=len, reverse=True))})\b|(,)")
# Words that make a prompt mean something else than its things next to each other.
_OTHER_WORDS = """
no not zero 0 without or nor neither either but instead except like as than half between mix mixed
hybrid cross shaped made dressed disguised into
"""
_MIXED = frozenset(["half", "between", "mix", "mixed", "hybrid", "cross"])
_OTHER = frozenset(_OTHER_WORDS.split())
_TOKEN = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
# The grammar of prompts: what changes with the steps or joins whole prompts, and weights.
_GRAMMAR = re.compile(r"[\[\]{}<>|]|\b(?:AND|BREAK)\b")
_WEIGHTS = re.compile(r"[():]")


class Region(NamedTuple):
    """A part of a picture with a prompt of its own."""

    prompt: str
    left: float
    """From 0 to 1 of the picture's width, as is `width`."""
    top: float
    width: float
    height: float


class Arrangement(NamedTuple):
    """Texts, one for each thing, and where they belong on a canvas of some cells each way."""

    texts: tuple[str, ...]
    cells: tuple[Cell, ...]
    side: int
    """Cells of the canvas from left to right, and from top to bottom."""

    def regions(self, width: int, height: int) -> tuple[Region, ...]:
        """On a canvas of this size, in pixels of the first pass, whose shorter side has `side` cells."""
        cell = min(width, height) / self.side
        left, top = (width - cell * self.side) / 2, (height - cell * self.side) / 2
        return tuple(
            Region(
                text,
                (left + x * cell) / width,
                (top + y * cell) / height,
                cell / width,
                cell / height,
            )
            for text, (x, y) in zip(self.texts, self.cells, strict=True)
        )


class _Thing(NamedTuple):
    """A known name in a prompt."""

    first: int
    """Its first token, and the one after its last."""
    end: int
    name: str
    """In the singular."""
    many: bool
    """Whether the prompt has it in what may be a plural."""


def arrange(prompt: str, lexicon: Lexicon) -> Arrangement | None:
    """The things of a prompt, arranged; None: one thing, or a prompt that is not understood as several
    things."""
    arranged = _arrange(prompt, lexicon)
    return None if isinstance(arranged, str) else arranged


def why_whole(prompt: str, lexicon: Lexicon) -> str:
    """Why a prompt that names several things is not arranged, with fields of a request in braces; empty
    if it is arranged, or if it names one thing."""
    arranged = _arrange(prompt, lexicon)
    return arranged if isinstance(arranged, str) else ""


def _arrange(prompt: str, lexicon: Lexicon) -> Arrangement | str:
    """The things of a prompt, arranged, or why they are not; an empty reason: there is one thing, or
    the prompt says in its grammar how its parts are joined."""
    if _GRAMMAR.search(prompt):
        return ""
    tokens = list(_TOKEN.finditer(prompt))
    words = [token.group().lower().replace("’", "'") for token in tokens]
    things = _things(words, lexicon)
    named = {i for thing in things for i in range(thing.first, thing.end)}
    if not things:
        return ""
    if len(things) > 1 or (things[0].many and any(_number(word) > 1 for word in words)):
        if _WEIGHTS.search(prompt):
            return "it has weights"
        other = [word for i, word in enumerate(words) if i not in named and word in _OTHER]
        if other:
            between = "; {mix} draws what is between two prompts" if other[0] in _MIXED else ""
            return f"{other[0]!r} is not understood{between}"
    joints = []
    starts = [_start(words, things[0].first, 0, things[0])]
    for before, after in pairwise(things):
        gap = prompt[tokens[before.end - 1].end() : tokens[after.first].start()]
        found = list(_JOINT.finditer(gap.lower()))
        joints.append(" ".join(match.group() for match in found if match.group() != ","))
        first = after.first
        if found:
            begin = tokens[before.end - 1].end() + found[-1].end()
            first = next(i for i in range(before.end, first + 1) if tokens[i].start() >= begin)
        starts.append(_start(words, first, before.end, after))
        between = words[before.end : starts[-1]]  # the joint and what is left out, such as a verb
        if not PLAIN_WORDS.issuperset(between) or (not found and "of" in between):
            return f"{gap.strip()!r} between two things is not understood"
    head = prompt[: tokens[starts[0]].start()]
    tail = prompt[tokens[things[-1].end - 1].end() :].rstrip(" .!")
    shape = next((_SHAPES[word] for word in words[things[-1].end :] if word in _SHAPES), None)
    tail = re.sub(r",?\s*in a (?:row|line|column|stack|grid|circle)\b", "", tail)
    phrases = [words[start : thing.first] for thing, start in zip(things, starts, strict=True)]
    counts = [_count(own, thing) for own, thing in zip(phrases, things, strict=True)]
    if sum(counts) == 1:
        return ""
    if sum(counts) > MOST:
        return f"it asks for more than {MOST} things"
    texts: list[str] = []
    for thing, own, count in zip(things, phrases, counts, strict=True):
        rest = [
            word
            for before, word in pairwise(("", *own))
            if not _number(word)
            and word not in _ARTICLES
            and not (word == "of" and before in QUANTITIES)
        ]
        text = " ".join([*rest, thing.name])
        if thing.many or {"a", "an", "one"} & set(own):
            text = with_article(text)
        texts += [f"{head}{text}{tail}"] * count
    lie = LIES.get(joints[0], "left") if len(texts) == len(things) == 2 else None
    return Arrangement(tuple(texts), *_cells(len(texts), lie, shape))


def _things(words: Sequence[str], lexicon: Lexicon) -> list[_Thing]:
    """The known names in the words, the longest ones first, from left to right."""
    names = {
        tuple(name.lower().split()): name.lower()
        for entry in lexicon.entries
        for name in entry.names
        if name.lower() not in PLAIN_WORDS
    }
    longest = max(map(len, names), default=0)
    found: list[_Thing] = []
    at = 0
    while at < len(words):
        thing = None
        for length in range(min(longest, len(words) - at), 0, -1):
            own = tuple(words[at : at + length])
            forms = [(*own[:-1], last) for last in singulars(own[-1])]
            known = [form for form in forms if form in names]
            if known:  # "stars" and "star" may both be names
                thing = _Thing(at, at + length, names[known[-1]], _many(own[-1], known))
                break
        if thing is None:
            at += 1
            continue
        if found and found[-1].end == thing.first:  # "a rose garden": the first one is no thing
            found.pop()
        found.append(thing)
        at = thing.end
    return found


def _start(words: Sequence[str], first: int, earliest: int, thing: _Thing) -> int:
    """Where the phrase of a thing begins: at its last article or number from `earliest` on, and at the
    article of that number ("a few"), else at `first`."""
    for at in range(thing.first - 1, earliest - 1, -1):
        if words[at] in _ARTICLES or _number(words[at]):
            while at > earliest and (words[at - 1] in _ARTICLES or _number(words[at - 1])):
                at -= 1
            return at
    return first


def _count(words: Sequence[str], thing: _Thing) -> int:
    """How often a thing is asked for. words: of its phrase, before its name."""
    if not thing.many or ("pair" in words and thing.name.endswith("s")):  # "a pair of jeans"
        return 1
    return max(map(_number, words), default=0) or 1


def _many(word: str, forms: Sequence[Sequence[str]]) -> bool:
    """Whether a word may be a plural: one that is spelled like it, or another than its known forms."""
    return word.endswith("s") or all(form[-1] != word for form in forms)


def _number(word: str) -> int:
    """What a word counts; 0 if it does not count."""
    return NUMBERS.get(word) or QUANTITIES.get(word) or (int(word[:4]) if word.isdecimal() else 0)


def _cells(count: int, lie: str | None, shape: str | None) -> tuple[tuple[Cell, ...], int]:
    """Where so many things are, and how many cells the canvas has each way."""
    if shape is None and lie is not None:
        beside, stacked = ((0.0, 0.5), (1.0, 0.5)), ((0.5, 0.0), (0.5, 1.0))
        cells = beside if lie in ("left", "right") else stacked
        return cells if lie in ("left", "above") else cells[::-1], 2
    if shape == "row" and count <= 4:
        return tuple((float(i), (count - 1) / 2) for i in range(count)), count
    if shape == "column" and count <= 4:
        return tuple(((count - 1) / 2, float(i)) for i in range(count)), count
    side = 2 if count <= 4 else 3
    rows = -(-count // side)
    found: list[Cell] = []
    for row in range(rows):
        here = min(side, count - row * side)
        found += [(i + (side - here) / 2, row + (side - rows) / 2) for i in range(here)]
    return tuple(found), side
