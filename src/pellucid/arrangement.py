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
from itertools import combinations, pairwise
from typing import NamedTuple, TypeVar

from pellucid.colors import Color, take_ground
from pellucid.lexicon import COUNTS, PLAIN_WORDS, Lexicon
from pellucid.nouns import singulars, with_article

T = TypeVar("T")

WHITE = (255, 255, 255)
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
_ABOVE = (
    "on top of|on|above|over|riding|rides|in the|in|inside|sitting on|sits on|standing on|behind"
)
_BELOW = "below|under|underneath|beneath|in front of|wearing|wears"
_LEFT = (
    "to the left of|on the left of|left of|to the left side of|on the left side of|left side of"
    "|next to|beside|besides|near|with|holding|and|and also|between|in between"
)
_RIGHT = (
    "to the right of|on the right of|right of|to the right side of|on the right side of"
    "|right side of"
)
LIES: dict[str, str] = {
    words: lie
    for lie, each in (("above", _ABOVE), ("below", _BELOW), ("left", _LEFT), ("right", _RIGHT))
    for words in each.split("|")
}
JOINING = frozenset(word for words in LIES for word in words.split())
"""The single words of these."""
_SHAPES = {"row": "row", "line": "row", "column": "column", "stack": "column"}
_JOINT = re.compile(rf"\b({'|'.join(sorted(LIES, key=len, reverse=True))})\b|(,)", re.IGNORECASE)
# Words that make a prompt mean something else than its things next to each other.
_OTHER_WORDS = """
no not zero 0 without or nor neither either but instead except like as than half mix mixed
hybrid cross shaped made dressed disguised into
"""
_MIXED = frozenset(["half", "mix", "mixed", "hybrid", "cross"])
_BETWEEN = ("between", "in between")
_OTHER = frozenset(_OTHER_WORDS.split())
_TOKEN = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
# Where a thing is in the picture: "on the left", "in the top right corner of the picture".
_PLACE = re.compile(
    r",?\s*\b(?:on|to|at|in|near) the "
    r"(?:(?P<down>top|upper|bottom|lower)(?:[ -]?(?P<across>left|right))?"
    r"|(?P<side>left|right)|middle|center|centre)\b(?:[ -](?:hand[ -])?(?:side|corner|edge|half|part))?+"
    r"(?:\s+of the (?:picture|image|canvas|frame))?+(?!\s+of\b)",
    re.IGNORECASE,
)
_SMALL = {"small": 2, "mini": 2, "little": 2, "tiny": 3, "miniature": 3}
"""Words -> how many such things are as wide as the picture."""
_BESIDE = {"tiny": 0.45, "miniature": 0.45, "small": 0.65, "mini": 0.65, "little": 0.65}
_BESIDE |= {"big": 1.5, "large": 1.5, "huge": 2.0, "giant": 2.0, "gigantic": 2.0}
_BESIDE |= {"enormous": 2.0, "massive": 2.0}
"""Words -> how large such a thing is beside others without such a word."""
SIZES = frozenset(_BESIDE)
"""Words that say how large a thing is. They are not read: only the size of its region is."""
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


class Meeting(NamedTuple):
    """How two things touch: a point of the second lies on a point of the first."""

    first: tuple[float, float]
    """Across and down, 0 to 1 of what is seen of the thing."""
    second: tuple[float, float]
    front: int
    """0: the first covers the second; 1: the other way round."""
    sizes: tuple[float, float] = (1.0, 1.0)


_ON = Meeting((0.5, 1.0), (0.5, 0.12), front=0)
_IN = Meeting((0.5, 1.0), (0.5, 0.35), front=1, sizes=(0.8, 1.0))
_ON_HEAD = Meeting((0.5, 0.15), (0.5, 1.0), front=1, sizes=(1.0, 0.7))
_ON_EYES = Meeting((0.5, 0.42), (0.5, 0.5), front=1, sizes=(1.0, 0.75))
_WORN = Meeting((0.5, 0.95), (0.5, 0.1), front=0)  # below the head, which is most of an animal here
_HELD = Meeting((0.9, 0.65), (0.1, 0.5), front=1, sizes=(1.0, 0.6))
MEETINGS = {
    **dict.fromkeys(("on", "on top of", "riding", "rides"), _ON),
    **dict.fromkeys(("sitting on", "sits on", "standing on"), _ON),
    **dict.fromkeys(("in", "inside"), _IN),
    "in the": Meeting((0.5, 1.0), (0.5, 0.95), front=0, sizes=(0.5, 1.0)),  # rain, sea
    "holding": _HELD,
    "behind": Meeting((0.3, 0.9), (0.5, 0.75), front=1),
    "in front of": Meeting((0.5, 0.4), (0.5, 1.0), front=0),
}
"""Words between two things -> how these touch; with other words they do not."""


_WEARING = ("wearing", "wears")
WORN = {
    **dict.fromkeys(("hat", "cap", "crown", "helmet", "tophat"), _ON_HEAD),
    **dict.fromkeys(("glasses", "eyeglasses", "sunglasses"), _ON_EYES),
}
"""The last words of what is worn on the head, also after "with"; how it touches its wearer."""


class Layout(NamedTuple):
    """How the things of a canvas become the picture, where that is not the canvas itself."""

    sizes: tuple[float, ...]
    """Of each thing, beside the others."""
    meeting: Meeting | None = None
    ground: Color | None = None
    """What is painted behind the things; None: white."""

    @property
    def moves(self) -> bool:
        """Whether the things are elsewhere in the picture than on the canvas, or of another size."""
        return self.meeting is not None or min(self.sizes) < 1 or len(set(self.sizes)) > 1


class Arrangement(NamedTuple):
    """Texts, one for each thing, and where they belong on a canvas of some cells each way."""

    texts: tuple[str, ...]
    cells: tuple[Cell, ...]
    side: int
    """Cells of the canvas from left to right, and from top to bottom."""
    layout: Layout | None = None
    """None: the picture is as the canvas."""

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
    """The things of a prompt, arranged; None: one thing as large as the picture, or a prompt that is
    not understood as several things."""
    arranged = _arrange(prompt, lexicon)
    return None if isinstance(arranged, str) else arranged


def why_whole(prompt: str, lexicon: Lexicon) -> str:
    """Why a prompt that names several things is not arranged, with fields of a request in braces; empty
    if it is arranged, or if it names one thing."""
    arranged = _arrange(prompt, lexicon)
    return arranged if isinstance(arranged, str) else ""


def _arrange(prompt: str, lexicon: Lexicon) -> Arrangement | str:
    """The things of a prompt, arranged, or why they are not; an empty reason: there is one thing as
    large as the picture, or the prompt says in its grammar how its parts are joined."""
    if _GRAMMAR.search(prompt):
        return ""
    text, ground = take_ground(_blank(_PLACE, prompt))
    tokens = list(_TOKEN.finditer(text))
    words = [token.group().lower().replace("’", "'") for token in tokens]
    things = _things(words, lexicon)
    if not things:
        return ""
    several = len(things) > 1 or (things[0].many and any(_number(word) > 1 for word in words))
    if _WEIGHTS.search(prompt):
        return "it has weights" if several else ""
    why = _not_understood(words, things) if several else ""
    if why:
        return why
    cut = _cut(text, tokens, words, things)
    if isinstance(cut, str):
        return cut
    starts, joints = cut
    phrases = [words[start : thing.first] for thing, start in zip(things, starts, strict=True)]
    counts = [_count(own, thing) for own, thing in zip(phrases, things, strict=True)]
    between = "between" in words
    if between and not _is_between(joints, counts):
        return _not_read("between", mixed=True)
    if sum(counts) > MOST:
        return f"it asks for more than {MOST} things"
    texts = [_text(own, thing) for own, thing in zip(phrases, things, strict=True)]
    places = _places(prompt, [tokens[thing.first].start() for thing in things])
    after = words[things[-1].end :]
    if sum(counts) > 1:
        shape = next((_SHAPES[word] for word in after if word in _SHAPES), None)
        lie = LIES.get(joints[0], "left") if counts == [1, 1] else None
        if between:
            (left, middle, right), side = _cells(3, None, "row")
            cells: tuple[Cell, ...] = (middle, left, right)
        else:
            cells, side = _placed(places, counts) or _cells(sum(counts), lie, shape)
    elif text != prompt or SIZES.intersection(phrases[0]):
        cells, side = _alone(phrases[0], places.get(0))
    else:
        return ""
    head = text[: tokens[starts[0]].start()]
    tail = text[tokens[things[-1].end - 1].end() :].rstrip(" .!")
    tail = re.sub(r",?\s*in a (?:row|line|column|stack|grid|circle)\b", "", tail)
    whole = [re.sub(r"\s+(?=[\s,]|$)", "", f"{head}{own}{tail}").strip() for own in texts]
    met = None if counts != [1, 1] or places else _met(joints[0], things[1].name)
    own_sizes = [_size(own) for own in phrases] if sum(counts) > 1 else [1.0]
    layout = Layout(_of_each(own_sizes, counts), met, None if ground == WHITE else ground)
    return Arrangement(
        _of_each(whole, counts), cells, side, layout if layout.moves or layout.ground else None
    )


def _met(joint: str, second: str) -> Meeting | None:
    """How two things touch that are joined by these words; None: they do not."""
    worn = WORN.get(second.split()[-1])
    if joint in _WEARING or (joint == "with" and worn is not None):
        return worn or _WORN
    return MEETINGS.get(joint)


def _of_each(values: Sequence[T], counts: Sequence[int]) -> tuple[T, ...]:
    """Each value as often as its thing is there."""
    return tuple(v for v, count in zip(values, counts, strict=True) for _ in range(count))


def _size(words: Sequence[str]) -> float:
    """How large a thing is beside others. words: of its phrase."""
    return next((_BESIDE[word] for word in words if word in _BESIDE), 1.0)


def _blank(pattern: re.Pattern[str], prompt: str) -> str:
    """A prompt with spaces for what the pattern finds, so that the rest stays where it is."""
    return pattern.sub(lambda found: " " * len(found.group()), prompt)


def _not_understood(words: Sequence[str], things: Sequence[_Thing]) -> str:
    """Why the things of a prompt cannot be drawn one by one, as far as single words say so."""
    named = {i for thing in things for i in range(thing.first, thing.end)}
    other = next((word for i, word in enumerate(words) if i not in named and word in _OTHER), None)
    return "" if other is None else _not_read(other, other in _MIXED)


def _not_read(word: str, mixed: bool) -> str:
    """Why a prompt is drawn as a whole that has this word. mixed: it may join two things to one."""
    mix = "; {mix} draws what is between two prompts" if mixed else ""
    return f"{word!r} is not understood{mix}"


def _is_between(joints: Sequence[str], counts: Sequence[int]) -> bool:
    """Whether a thing is between two others: "a cat between a dog and a cow", "between two dogs"."""
    if not joints or joints[0] not in _BETWEEN:
        return False
    return list(counts) == [1, 2] or (list(counts) == [1, 1, 1] and joints[1] == "and")


def _cut(
    prompt: str, tokens: Sequence[re.Match[str]], words: Sequence[str], things: Sequence[_Thing]
) -> tuple[list[int], list[str]] | str:
    """The word at which the phrase of each thing begins, and what joins each two; or why not."""
    joints = []
    starts = [_start(words, things[0].first, 0, things[0])]
    for before, after in pairwise(things):
        gap = prompt[tokens[before.end - 1].end() : tokens[after.first].start()]
        found = list(_JOINT.finditer(gap))
        joints.append(" ".join(match.group().lower() for match in found if match.group() != ","))
        first = after.first
        if found:
            begin = tokens[before.end - 1].end() + found[-1].end()
            first = next(i for i in range(before.end, first + 1) if tokens[i].start() >= begin)
        starts.append(_start(words, first, before.end, after))
        between = words[before.end : starts[-1]]  # the joint and what is left out, such as a verb
        if not PLAIN_WORDS.issuperset(between) or (not found and "of" in between):
            return f"{gap.strip()!r} between two things is not understood"
    return starts, joints


def _text(words: Sequence[str], thing: _Thing) -> str:
    """One thing as a prompt, without its number and size. words: of its phrase, before its name."""
    rest = [
        word
        for before, word in pairwise(("", *words))
        if not (_number(word) or word in _ARTICLES or word in SIZES)
        and not (word == "of" and before in QUANTITIES)
    ]
    text = " ".join([*rest, thing.name])
    counted = any(word in ("a", "an", *NUMBERS) or word.isdecimal() for word in words)
    one = thing.many or (counted and QUANTITIES.keys().isdisjoint(words))  # not "a lot of rain"
    return with_article(text) if one else text


def _places(prompt: str, starts: Sequence[int]) -> dict[int, Cell]:
    """Where the prompt says that things are: the number of a thing -> across and down, 0 to 1.

    starts: of the things in the prompt. A place belongs to the thing before it, if that has none yet,
    else to the one after it.
    """
    found: dict[int, Cell] = {}
    for match in _PLACE.finditer(prompt):
        thing = sum(start < match.start() for start in starts) - 1
        if thing < 0 or thing in found:
            thing += 1
        across, down = match["across"] or match["side"], match["down"]
        x = {None: 0.5, "left": 0.0, "right": 1.0}[across and across.lower()]
        y = 0.5 if down is None else 0.0 if down.lower() in ("top", "upper") else 1.0
        if thing < len(starts):
            found[thing] = (x, y)
    return found


def _placed(places: dict[int, Cell], counts: Sequence[int]) -> tuple[tuple[Cell, ...], int] | None:
    """Cells of several things of which the prompt says where they are; None: it does not say enough."""
    if set(counts) != {1}:
        return None
    if len(places) == 1 and len(counts) == 2:  # the other one is opposite
        ((thing, (x, y)),) = places.items()
        places = places | {1 - thing: (1 - x, 1 - y)}
    cells = tuple(places.get(i, (0.5, 0.5)) for i in range(len(counts)))
    apart = all(max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= 1 for a, b in combinations(cells, 2))
    return (cells, 2) if apart else None


def _alone(words: Sequence[str], place: Cell | None) -> tuple[tuple[Cell, ...], int]:
    """The cell of a thing that is small, or not in the middle. words: of its phrase."""
    x, y = place or (0.5, 0.5)
    side = max((_SMALL.get(word, 1) for word in words), default=1)
    if (x, y) != (0.5, 0.5):
        side = max(side, 2)
    return ((x * (side - 1), y * (side - 1)),), side


def _things(words: Sequence[str], lexicon: Lexicon) -> list[_Thing]:
    """The known names in the words, the longest ones first, from left to right."""
    names = lexicon.things
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
    article of that number ("a few"), else at a word for its size, else at `first`."""
    for at in range(thing.first - 1, earliest - 1, -1):
        if words[at] in _ARTICLES or _number(words[at]):
            while at > earliest and (words[at - 1] in _ARTICLES or _number(words[at - 1])):
                at -= 1
            return at
    return next((at for at in range(earliest, first) if words[at] in SIZES), first)


def _count(words: Sequence[str], thing: _Thing) -> int:
    """How often a thing is asked for. words: of its phrase, before its name."""
    if "pair" in words and thing.name.endswith("s"):  # "a pair of jeans"
        return 1
    if not thing.many:  # "five fish", but not "a lot of rain"
        words = [word for word in words if word not in QUANTITIES]
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
