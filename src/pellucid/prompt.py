r"""The grammar of prompts, as in the A1111 web UI.

    (x)  (x:1.3)  [x]            x counts 1.1 times, 1.3 times, 1 / 1.1 times; nested, they multiply
    \(  \)  \[  \]  \\  \:  \|   the character itself; before any other character a \ is dropped
    BREAK                        a new chunk of tokens begins
    a AND b :0.5                 two prompts at once, of which b counts half
    [a:b:0.4]  [a::7]  [:b:7]    first a, then b: after 0.4 of the steps, after step 7
    [a|b]                        a and b in turns, from step to step
    <lora:name:0.8>              a LoRA
    <hypernet:name:0.8>          a hypernetwork, which is left out

Every text is a valid prompt: a bracket that is not closed is read as if it were closed at the end,
one that was not opened is read as text. The order of parsing: `take_loras`, `split_and`, `each_step`,
`parse`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Literal, NamedTuple

MORE, LESS = 1.1, 1 / 1.1
WalkBy = Literal["embeddings", "estimates"]
"""What is interpolated between two prompts: their text embeddings, or the estimates of the picture."""
Emphasis = Literal["original", "no_norm"]
"""What weights do to the text encoder's vectors, see `model`."""
CLOSE = "\x03"
"""Closes all brackets that are open: what is appended to a prompt is outside of them. "(a cat:1.5" with
a bracket behind it would have another weight."""
LONGEST_SHOWN = 80  # characters of a part of a prompt in a message
# A terminal's escape sequence is text, which the tokenizer cleans away; its bracket is none.
ESCAPE = r"\x1b\[[\d;]*[a-zA-Z]"
NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?"


# ---------------------------------------------------------------- <lora:name:weight>


class LoraTag(NamedTuple):
    """A LoRA that a prompt names, with its weights in the network and in the text towers."""

    name: str
    weight: float
    text_weight: float


_NETWORK = re.compile(r"<(lora|lyco|hypernet):([^<>]*)>")
_ALMOST = re.compile(r"<\s*(?:lora|lyco|hypernet)\s*:[^<>]*>?", re.I)  # in capitals, or not closed


def take_loras(text: str) -> tuple[str, list[LoraTag]]:
    """`text` without its tags of LoRAs and hypernetworks, and those of LoRAs in their order.

    <lora:name> counts 1, <lora:name:0.8> counts 0.8. <lora:name:0.5:0.8> is 0.5 in the text towers
    and 0.8 in the network, which can be written <lora:name:te=0.5:unet=0.8> too.
    Raises ValueError for a tag without a name, and for a weight that is not a finite number.
    """
    tags = [match for match in _NETWORK.finditer(text) if match[1] != "hypernet"]
    return _NETWORK.sub("", text), [_lora(_shortened(match[0]), match[2]) for match in tags]


def unsupported(text: str) -> str | None:
    """The first hypernetwork that a prompt asks for, or what looks like a tag and is read as text, in
    words; None if there is none."""
    for match in _NETWORK.finditer(text):
        if match[1] == "hypernet":
            return f"{_shortened(match[0])} is left out: hypernetworks are not supported"
    if almost := _ALMOST.search(_NETWORK.sub("", text)):
        return f"{_shortened(almost[0])!r} is read as text; a LoRA is written <lora:name:weight>"
    return None


def _lora(tag: str, fields: str) -> LoraTag:
    """tag: how messages show it."""
    name, *values = (field.strip() for field in fields.split(":"))
    if not name:
        raise ValueError(f"{tag} names no LoRA; it must be <lora:name:weight>")
    places = ["te", "unet"]
    found: dict[str, float] = {}
    for value in values:
        place, named, number = value.rpartition("=")
        if not named:
            place = next((p for p in places if p not in found), "")
        known = place in places and place not in found
        weight = float(number) if re.fullmatch(NUMBER, number.strip(), re.I) else math.nan
        if not known or not math.isfinite(weight):
            raise ValueError(
                f"{tag}: {_shortened(value)!r} is not understood; it must be <lora:name:weight> or "
                "<lora:name:text weight:network weight>, with finite numbers"
            )
        found[place] = weight
    text_weight = found.get("te", 1.0)
    return LoraTag(name, found.get("unet", text_weight), text_weight)


def _shortened(text: str) -> str:
    """A part of a prompt for a message: not all of it, which may be long."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


# ---------------------------------------------------------------- AND

_WEIGHTED = re.compile(rf"(.*?):\s*({NUMBER})\s*", re.S | re.I)


def split_and(text: str) -> list[tuple[str, float]]:
    """The prompts that AND joins, and their weights: 1, or the number after their last colon.

    A prompt without AND has no weight, so that "a clock that shows 10:30" stays as it is.
    """
    parts = re.split(r"\bAND\b", text)
    if len(parts) == 1:
        return [(text, 1.0)]
    matches = [_WEIGHTED.fullmatch(part) for part in parts]
    return [
        (part, 1.0) if match is None else (match[1], float(match[2]))
        for part, match in zip(parts, matches, strict=True)
    ]


# ---------------------------------------------------------------- brackets without a partner

_BRACKETS = re.compile(rf"{_NETWORK.pattern}|{ESCAPE}|\\.|[()\[\]]|\bAND\b", re.S)
_OPENERS = {")": "(", "]": "["}
EXCERPT = 24  # characters of a prompt in a message


def appended(prompt: str, text: str) -> str:
    """The prompt and then the text, which no bracket of the prompt weighs."""
    return f"{prompt}{CLOSE if unbalanced(prompt) else ''}{text}"


def unbalanced(prompt: str) -> str | None:
    """A message about the first bracket of a prompt without a partner; None if each has one.

    Such a prompt is valid, but seldom means what its author intended. Round and square brackets may
    overlap, as in `parse`; no bracket extends beyond an AND.
    """
    alone: list[re.Match[str]] = []
    opened: dict[str, list[re.Match[str]]] = {"(": [], "[": []}
    for match in _BRACKETS.finditer(prompt):
        symbol = match[0]
        if symbol in opened:
            opened[symbol].append(match)
        elif symbol in _OPENERS and opened[_OPENERS[symbol]]:
            opened[_OPENERS[symbol]].pop()
        elif symbol in _OPENERS:
            alone.append(match)
        elif symbol == "AND":
            for each in opened.values():
                alone += each
                each.clear()
    alone += opened["("] + opened["["]
    first = min(alone, key=lambda match: match.start(), default=None)
    if first is None:
        return None
    bracket, place = first[0], first.start()
    if bracket in _OPENERS:
        what, around = "has no opening bracket and is read as text", prompt[: place + 1][-EXCERPT:]
    else:
        what = "is not closed; it is read as if it were closed at the end"
        around = prompt[place:][:EXCERPT]
    return (
        f"the bracket {bracket!r} at character {place + 1} of the prompt, in {around!r}, {what}; a "
        f"plain bracket is written \\{bracket}"
    )


# ---------------------------------------------------------------- [a:b:when] and [a|b]

_SYMBOL = re.compile(rf"{ESCAPE}|\\.|[()\[\]:|\\\x1b]|[^()\[\]:|\\\x1b]+", re.S)
_WHEN = re.compile(rf"\s*{NUMBER}\s*", re.I)


class _Choice(NamedTuple):
    """A bracket that is something else from step to step."""

    end: int
    """The number of the symbol behind it."""
    texts: list[range]
    """What it can be: the numbers of symbols."""
    when: str
    """When the second text follows the first; "": the texts take turns."""

    def at(self, step: int, steps: int, second: int) -> range:
        """The text at a step, which is counted from 1 through both passes."""
        if self.when:
            return self.texts[0 if step <= _last_step(self.when, steps, second) else 1]
        in_pass = step if step <= steps else step - steps
        return self.texts[(in_pass - 1) % len(self.texts)]


class _Bracket(NamedTuple):
    """A bracket that is open: the number of its symbol, and those of its own ":" and "|"."""

    start: int
    opener: str
    colons: list[int]
    bars: list[int]

    def choice(self, symbols: list[str], end: int) -> _Choice | None:
        """What it means when it is closed by symbol `end`; None: less weight."""
        if len(self.colons) in (1, 2) and end - self.colons[-1] == 2:
            when = symbols[end - 1]
            if _WHEN.fullmatch(when):
                *first, second = _between(self.start, self.colons)
                return _Choice(end + 1, [first[0] if first else range(0), second], when)
        if self.bars:
            return _Choice(end + 1, _between(self.start, [*self.bars, end]), "")
        return None


def _between(start: int, marks: list[int]) -> list[range]:
    return [range(a + 1, b) for a, b in pairwise([start, *marks])]


@dataclass(frozen=True)
class _Schedule:
    """A prompt that may change: its symbols, and the brackets among them that change, by number."""

    symbols: list[str]
    choices: dict[int, _Choice]

    @classmethod
    def of(cls, prompt: str) -> _Schedule:
        symbols = _SYMBOL.findall(prompt)
        choices: dict[int, _Choice] = {}
        opened = [_Bracket(-1, "", [], [])]  # the outermost is the prompt itself
        for number, symbol in enumerate(symbols):
            inner = opened[-1]
            if symbol in ("(", "["):
                opened.append(_Bracket(number, symbol, [], []))
            elif symbol == ":":
                inner.colons.append(number)
            elif symbol == "|":
                inner.bars.append(number)
            elif symbol in _OPENERS and inner.opener == _OPENERS[symbol]:
                opened.pop()
                choice = inner.choice(symbols, number) if symbol == "]" else None
                if choice is not None:
                    choices[inner.start] = choice
        return cls(symbols, choices)

    def at(self, step: int, steps: int, second: int) -> list[int]:
        """The numbers of the symbols that are there at a step."""
        found: list[int] = []
        rest = [range(len(self.symbols))]
        while rest:
            here = rest.pop()
            for number in here:
                choice = self.choices.get(number)
                if choice is not None:
                    rest.append(range(choice.end, here.stop))
                    rest.append(choice.at(step, steps, second))
                    break
                found.append(number)
        return found


def each_step(prompt: str, steps: int, second: int = 0) -> list[str]:
    """The prompt at each of `steps` and then at each of `second` steps of a second pass.

    "when" counts the steps of both; with a decimal point, it is a fraction of the first pass from 0
    to 1 and of the second from 1 to 2. Turns start again in the second pass.
    """
    schedule = _Schedule.of(prompt)
    if not schedule.choices:
        return [prompt] * (steps + second)
    each = (schedule.at(step, steps, second) for step in range(1, steps + second + 1))
    return ["".join(schedule.symbols[number] for number in there) for there in each]


def unread(prompt: str, steps: int, second: int = 0) -> list[str]:
    """The texts of a prompt that are in it at no step, such as b of [a:b:1.3], each once."""
    schedule = _Schedule.of(prompt)
    if not schedule.choices or steps + second == 0:
        return []
    read = bytearray(len(schedule.symbols))
    for step in range(1, steps + second + 1):
        for number in schedule.at(step, steps, second):
            read[number] = True
    texts = [symbol.strip(" ()[]:|\\") for symbol in schedule.symbols]
    known = {text for text, there in zip(texts, read, strict=True) if there}
    missing = dict.fromkeys(text for text in texts if text and text not in known)
    return [text for text in missing if not _WHEN.fullmatch(text)]


def _last_step(when: str, steps: int, second: int) -> float:
    """The last step of the first text; a fraction is rounded down to whole steps."""
    value = float(when)
    if "." not in when and value >= 1:
        return value
    value = min(max(value, 0.0), 2.0)
    share = value * steps if value <= 1 else steps + (value - 1) * second
    return math.floor(share + 1e-6)  # 0.29 * 100 is 28.999...


# ---------------------------------------------------------------- weights and BREAK


class WeightedText(NamedTuple):
    """A piece of text with one weight."""

    text: str
    weight: float


_BREAK = re.compile(r"\bBREAK\b")
_WEIGHT = rf":\s*({NUMBER}|[+-]?(?:inf|nan))\s*\)"
_ATTENTION = re.compile(
    rf"{ESCAPE}|\\[()\[\]:|\\]|[()\[\]\\\x1b{CLOSE}]|{_WEIGHT}|:|[^()\[\]:\\\x1b{CLOSE}]+", re.I
)


def parse(prompt: str) -> list[list[WeightedText]]:
    """The runs of a prompt of one step, a list for each part between BREAKs; at least one.

    Weights may be any number, infinite too.
    """
    # Each bracket has a factor and an enclosing bracket of its own kind: round and square ones may
    # overlap. Number 0 is the prompt itself.
    factors, outer = [1.0], [0]
    open_round, open_square = [0], [0]  # innermost last
    pieces: list[tuple[str, int, int]] = []
    for match in _ATTENTION.finditer(prompt):
        symbol, weight = match[0], match[1]
        if symbol in ("(", "["):
            opened, factor = (open_round, MORE) if symbol == "(" else (open_square, LESS)
            outer.append(opened[-1])
            opened.append(len(factors))
            factors.append(factor)
        elif symbol[-1] == ")" and symbol[0] != "\\" and len(open_round) > 1:
            closed = open_round.pop()
            factors[closed] = MORE if weight is None else float(weight)
        elif symbol == "]" and len(open_square) > 1:
            open_square.pop()
        elif symbol == CLOSE and len(open_round) + len(open_square) > 2:
            open_round, open_square = [0], [0]
        else:
            pieces.append((symbol.removeprefix("\\"), open_round[-1], open_square[-1]))
    totals = [1.0]
    for factor, around in zip(factors[1:], outer[1:], strict=True):
        totals.append(factor * totals[around])
    weighted = [(text, totals[inner] * totals[square]) for text, inner, square in pieces]
    return [_merged(part) for part in _divided(weighted)]


def _divided(pieces: list[tuple[str, float]]) -> list[list[tuple[str, float]]]:
    """The pieces of each part; BREAK divides them."""
    parts: list[list[tuple[str, float]]] = [[]]
    for text, weight in pieces:
        first, *others = _BREAK.split(text)
        parts[-1].append((first, weight))
        parts += [[(other, weight)] for other in others]
    return parts


def _merged(pieces: list[tuple[str, float]]) -> list[WeightedText]:
    """Neighbours of the same weight as one run, without empty ones."""
    written = [piece for piece in pieces if piece[0]]
    groups = groupby(written, key=itemgetter(1))
    return [WeightedText("".join(text for text, _ in group), weight) for weight, group in groups]


# ---------------------------------------------------------------- styles

# ", 3d style", "in a pixel art style", "in the style of Monet", "3d style a cat", "a cat noto style".
_STYLE = re.compile(
    r",?\s?\bin the style of [^,]{1,60}"
    r"|(?:,\s?|\s?\bin (?:an? |the )?)(?:[\w'-]{1,30} ){1,3}style\b"
    r"|^\s?[\w'-]{1,30} style\b,?\s?|\s(?!with\b|of\b)[\w'-]{1,30} style(?=\s?$)",
    re.IGNORECASE,
)


def names_style(prompt: str) -> bool:
    """Whether a prompt names a style, of any program: "a cat, 3d style", "in the style of Monet"."""
    return _STYLE.search(prompt) is not None


def without_style(prompt: str) -> str | None:
    """A prompt without the style that it names: "a cat, 3d style" -> "a cat".

    None: it names none, or its grammar says how its parts count.
    """
    rest = _STYLE.sub("", prompt)
    return None if rest == prompt or not rest.strip() or set("()[]{}|") & set(prompt) else rest
