r"""The grammar of prompts, as in the A1111 web UI.

    (x)  (x:1.3)  [x]            x counts 1.1 times, 1.3 times, 1 / 1.1 times; nested, they multiply
    \(  \)  \[  \]  \\  \:  \|   the character itself
    BREAK                        a new chunk of tokens begins
    a AND b :0.5                 two prompts at once, of which b counts half
    [a:b:0.4]  [a::7]  [:b:7]    first a, then b: after 0.4 of the steps, after step 7
    [a|b]                        a and b in turns, from step to step
    <lora:name:0.8>              a LoRA

Every text is a valid prompt: a bracket that is never closed counts to the end, one that was never
opened stands for itself. The order of parsing: `take_loras`, `split_and`, `each_step`, `parse`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

MORE, LESS = 1.1, 1 / 1.1
Emphasis = Literal["original", "no_norm"]
"""What weights do to the text encoder's vectors, see `model`."""
NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?"


# ---------------------------------------------------------------- <lora:name:weight>


class LoraTag(NamedTuple):
    """A LoRA that a prompt names, with its weights in the network and in the text towers."""

    name: str
    weight: float
    text_weight: float


_LORA = re.compile(r"<(?:lora|lyco):([^<>]*)>")


def take_loras(text: str) -> tuple[str, list[LoraTag]]:
    """`text` without its LoRA tags, and the tags in their order.

    <lora:name> counts 1, <lora:name:0.8> counts 0.8. <lora:name:0.5:0.8> is 0.5 in the text towers
    and 0.8 in the network, which can be written <lora:name:te=0.5:unet=0.8> too.
    Raises ValueError for a tag without a name, and for a weight that is not a finite number.
    """
    loras = [_lora(match[0], match[1].split(":")) for match in _LORA.finditer(text)]
    return _LORA.sub("", text), loras


def _lora(tag: str, fields: list[str]) -> LoraTag:
    name, *values = (field.strip() for field in fields)
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
                f"{tag}: {value!r} is not understood; it must be <lora:name:weight> or "
                "<lora:name:text weight:network weight>, with finite numbers"
            )
        found[place] = weight
    text_weight = found.get("te", 1.0)
    return LoraTag(name, found.get("unet", text_weight), text_weight)


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

_BRACKETS = re.compile(rf"{_LORA.pattern}|\\.|[()\[\]]|\bAND\b", re.S)
_OPENERS = {")": "(", "]": "["}
EXCERPT = 24  # characters of a prompt in a message


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
        what, around = "closes nothing and stands for itself", prompt[: place + 1][-EXCERPT:]
    else:
        what, around = "is never closed and counts to the end", prompt[place:][:EXCERPT]
    return (
        f"the bracket {bracket!r} at character {place + 1} of the prompt, in {around!r}, {what}; a "
        f"plain bracket is written \\{bracket}"
    )


# ---------------------------------------------------------------- [a:b:when] and [a|b]

_SYMBOL = re.compile(r"\\.|[()\[\]:|\\]|[^()\[\]:|\\]+", re.S)


@dataclass
class _Bracket:
    """An open bracket: its content so far, and the indices of its own ":" and "|" in it."""

    opener: str
    items: list[str] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)

    def text(self) -> str:
        return self.opener + "".join(self.items)

    def split(self, mark: str) -> list[str]:
        """Its content, split at its own marks of this kind."""
        at = [i for i in self.marks if self.items[i] == mark]
        edges = zip([-1, *at], [*at, len(self.items)], strict=True)
        return ["".join(self.items[start + 1 : end]) for start, end in edges]


def each_step(prompt: str, steps: int, second: int = 0) -> list[str]:
    """The prompt at each of `steps` and then at each of `second` steps of a second pass.

    "when" counts the steps of both; with a decimal point, it is a fraction of the first pass from 0
    to 1 and of the second from 1 to 2.
    """
    if "[" not in prompt or not (":" in prompt or "|" in prompt):
        return [prompt] * (steps + second)
    symbols = _SYMBOL.findall(prompt)
    return [_at_step(symbols, step, steps, second) for step in range(1, steps + second + 1)]


def unread(prompt: str, steps: int, second: int = 0) -> list[str]:
    """The texts of a prompt that no step uses, such as b of [a:b:1.3]."""
    each = set(each_step(prompt, steps, second))
    texts = [symbol.strip(" ()[]:|\\") for symbol in _SYMBOL.findall(prompt)]
    numbers = re.compile(NUMBER, re.I)
    missing = [text for text in texts if not any(text in now for now in each)]
    return [text for text in missing if not numbers.fullmatch(text)] if each else []


def _at_step(symbols: list[str], step: int, steps: int, second: int) -> str:
    stack = [_Bracket("")]  # the outermost is the prompt itself
    for symbol in symbols:
        inner = stack[-1]
        if symbol in ("(", "["):
            stack.append(_Bracket(symbol))
        elif (inner.opener, symbol) == ("(", ")"):
            stack.pop()
            stack[-1].items.append(inner.text() + ")")
        elif (inner.opener, symbol) == ("[", "]"):
            stack.pop()
            stack[-1].items.append(_chosen(inner, step, steps, second))
        else:
            if symbol in (":", "|"):
                inner.marks.append(len(inner.items))
            inner.items.append(symbol)
    return "".join(bracket.text() for bracket in stack)  # some may not have been closed


def _chosen(bracket: _Bracket, step: int, steps: int, second: int) -> str:
    """The text of a bracket at a step; or the bracket itself, if it means less weight."""
    *texts, when = bracket.split(":")
    if len(texts) in (1, 2) and re.fullmatch(rf"\s*{NUMBER}\s*", when, re.I):
        before = "" if len(texts) == 1 else texts[0]
        return before if step <= _last_step(when, steps, second) else texts[-1]
    turns = bracket.split("|")
    return turns[(step - 1) % len(turns)] if len(turns) > 1 else bracket.text() + "]"


def _last_step(when: str, steps: int, second: int) -> float:
    """The last step of the first text; a fraction is rounded down to whole steps."""
    value = float(when)
    if "." not in when and value >= 1:
        return value
    value = min(max(value, 0.0), 2.0)
    share = value * steps if value <= 1 else steps + (value - 1) * second
    return math.floor(share + 1e-6)  # 0.29 * 100 is 28.999...


# ---------------------------------------------------------------- weights and BREAK


class Run(NamedTuple):
    """A piece of text with one weight."""

    text: str
    weight: float


_BREAK = re.compile(r"\bBREAK\b")
_WEIGHT = rf":\s*({NUMBER}|[+-]?(?:inf|nan))\s*\)"
_ATTENTION = re.compile(rf"\\[()\[\]:|\\]|[()\[\]\\]|{_WEIGHT}|:|[^()\[\]:\\]+", re.I)


def parse(prompt: str) -> list[list[Run]]:
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
        else:
            text = symbol[1:] if len(symbol) > 1 and symbol[0] == "\\" else symbol
            pieces.append((text, open_round[-1], open_square[-1]))
    totals = [1.0]
    for factor, around in zip(factors[1:], outer[1:], strict=True):
        totals.append(factor * totals[around])
    parts: list[list[Run]] = [[]]
    for text, inner_round, inner_square in pieces:
        here = totals[inner_round] * totals[inner_square]
        for number, stretch in enumerate(_BREAK.split(text)):
            if number > 0:
                parts.append([])
            runs = parts[-1]
            if runs and runs[-1].weight == here:
                runs[-1] = Run(runs[-1].text + stretch, here)
            elif stretch:
                runs.append(Run(stretch, here))
    return parts
