"""Variations in a prompt: ``{red|blue}`` draws one of several texts, ``__animal__`` a line of a list.

::

    {red|blue|green} boat          one of them
    {2$$a|b|c}                     two different ones, with ", " between; {1-2$$ and $$a|b|c} one or two,
                                   with " and "
    {0.2::rare|common}             weights; without one it is 1
    __animal__                     a line of animal.txt in the folder of word lists; __a*__ one of all
                                   lists whose names begin with "a"
    \\{not a variation\\}            literal braces

What is drawn depends only on the seed. A word list has a text in each line, which may have variations
of its own; blank lines and those that begin with "#" are left out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from pellucid.files import read_text
from pellucid.plugins import nearest

T = TypeVar("T")
DEEPEST = 20  # variations inside of variations
MAX_PROMPT = 100_000  # characters; OpenAI allows 32,000
SHOWN = 5  # names that a message lists
_COUNT = re.compile(r"\s*(\d+)?(-)?(\d+)?\s*$")
_WEIGHT = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)::")
_ANY_WEIGHT = re.compile(r"\s*([-+]?[\w.]+)::")
_LIST = re.compile(r"__([\w/\-. *]+?)__")
_VARIED = re.compile(r"(?<!\\)\{[^{}]*\|[^{}]*\}|__[\w/\-. *]+?__")


def varied(prompt: str) -> bool:
    """Whether a prompt has what `expand` would replace by one of several texts."""
    return _VARIED.search(prompt) is not None


def expand(template: str, seed: int, folder: Path) -> str:
    """The prompt that this seed draws from a template. folder: of the word lists.

    Raises ValueError: a brace without its partner, a list that does not exist or is empty, lists
    that lead back to themselves.
    """
    return _Expansion(random.Random(seed), folder).text(template, 0)


@dataclass
class _Expansion:
    random: random.Random
    folder: Path
    lists: dict[str, list[str]] = field(default_factory=dict)

    def text(self, template: str, depth: int) -> str:
        """The template with every variation replaced."""
        if depth > DEEPEST:
            raise ValueError(
                f"variations and word lists are more than {DEEPEST} deep at {template[:40]!r}"
            )
        drawn, at = "", 0
        while at < len(template):
            letter = template[at]
            if letter == "\\" and template[at + 1 : at + 2] in ("{", "}", "|"):
                drawn, at = drawn + template[at + 1], at + 2
            elif letter == "{":
                end = _closing(template, at)
                drawn, at = drawn + self.variation(template[at + 1 : end], depth + 1), end + 1
            elif letter == "}":
                raise ValueError(f"the prompt has a }} without its {{: {template[:80]!r}")
            elif found := _LIST.match(template, at):
                name = found[1].strip()
                if name not in self.lists:
                    self.lists[name] = lines_of(name, self.folder)
                line = self.choose(self.lists[name])
                drawn, at = drawn + self.text(line, depth + 1), found.end()
            else:
                drawn, at = drawn + letter, at + 1
            if len(drawn) > MAX_PROMPT:
                raise ValueError(
                    f"the prompt that is drawn has more than {MAX_PROMPT:,} characters"
                )
        return drawn

    def variation(self, inside: str, depth: int) -> str:
        """What is drawn from the text between two braces."""
        low = high = 1
        separator = ", "
        parts = _split(inside, "$$")
        if len(parts) > 1 and (count := _COUNT.match(parts[0])) and any(count.groups()):
            low = int(count[1] or 0)
            separator = parts[1] if len(parts) > 2 else separator
            inside = "$$".join(parts[min(2, len(parts) - 1) :])
            high = int(count[3]) if count[3] else low if count[2] is None else len(inside)
        options = _split(inside, "|")
        weights = [_weight(option) for option in options]
        texts = [_WEIGHT.sub("", option, count=1) for option in options]
        low, high = min(low, high, len(texts)), min(max(low, high), len(texts))
        drawn = []
        for _ in range(low + int(self.random.random() * (high - low + 1))):
            chosen = self.choose(range(len(texts)), weights)
            drawn.append(self.text(texts.pop(chosen), depth))
            weights.pop(chosen)
        return separator.join(drawn)

    def choose(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of the options. Only `random.random` keeps its sequence in all versions of Python."""
        weights = [1.0] * len(options) if weights is None or not any(weights) else weights
        at = self.random.random() * sum(weights)
        for option, weight in zip(options, weights, strict=True):
            at -= weight
            if at < 0:
                return option
        return options[-1]


def _weight(option: str) -> float:
    """That of an option. ValueError for one that is no positive number."""
    if found := _WEIGHT.match(option):
        return float(found[1])
    if found := _ANY_WEIGHT.match(option):
        raise ValueError(
            f"a weight of a variation must be a number such as 0.5, got {found[1]!r} in {option[:40]!r}"
        )
    return 1.0


def lines_of(name: str, folder: Path) -> list[str]:
    """The lines of the lists with this name, in which "*" is anything. ValueError names the nearest."""
    known = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.txt"))
    }
    names = [each for each in known if fnmatchcase(each, name)] if "*" in name else [name]
    if not names or names[0] not in known:
        if not known:
            raise ValueError(
                f"the prompt names the word list {name!r}, and {folder} has no .txt files; the "
                "setting `wildcards` is the folder of word lists"
            )
        near = ", ".join(nearest(name, known)[:SHOWN])
        raise ValueError(f"{folder} has no word list named {name!r}; nearest: {near}")
    words = [word for each in names for word in _words_in(known[each])]
    if not words:
        raise ValueError(f"{known[names[0]]} has no words in it")
    return words


def _words_in(path: Path) -> list[str]:
    try:
        lines = read_text(path).split("\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _closing(template: str, start: int) -> int:
    """Where the brace that opens at `start` is closed."""
    depth, at = 0, start
    while at < len(template):
        if template[at] == "\\":
            at += 1
        elif template[at] in "{}":
            depth += 1 if template[at] == "{" else -1
            if depth == 0:
                return at
        at += 1
    raise ValueError(f"the prompt has a {{ without its }}: {template[:80]!r}")


def _split(text: str, separator: str) -> list[str]:
    """The parts of a text, split outside of braces, with escapes kept."""
    parts, depth, begin, at = list[str](), 0, 0, 0
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0 and text.startswith(separator, at):
            parts.append(text[begin:at])
            at += len(separator)
            begin = at
        else:
            at += 1
    return [*parts, text[begin:]]
