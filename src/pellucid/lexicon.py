"""The words that a model has learnt: emoji in a prompt become words, and unknown words are found.

A small model draws what it was taught and nothing else, and its tokenizer spells out any other word
letter by letter without complaint. So its weights carry a `Lexicon`, from which the user is told
which words of a prompt the model does not know, and which known ones are nearest.

All functions here are pure: strings in, strings out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

COUNTS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
_FUNCTION_WORDS = """
a an the and or of in on at to with without by for from into onto over under above below behind before
beside between near next left right top bottom front back side middle center centre corner inside
outside around against up down is are it its this that these those some one two three four five six
no not very small big large little tiny huge great picture photo image drawing painting icon emoji
style background row column grid his her their my your as
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words that say how things lie, how many there are, or nothing. They are not reported."""

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_JOINER = "\u200d"
_SELECTORS = re.compile("[\ufe0e\ufe0f]")
_SKIN = re.compile("[\U0001f3fb-\U0001f3ff]")


@dataclass(frozen=True)
class Entry:
    """One thing that a model can draw."""

    emoji: str
    names: tuple[str, ...]
    """The commonest first."""
    tags: tuple[str, ...] = ()
    """Words that go with it; they need not name it."""


@dataclass(frozen=True)
class Lexicon:
    """All that a model has learnt: things, and the other words of its captions (colours, styles)."""

    entries: tuple[Entry, ...] = ()
    words: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What the metadata of the weights holds."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Lexicon:
        """The inverse of `to_json`. ValueError for anything else."""
        try:
            entries = tuple(
                Entry(str(e["emoji"]), _texts(e["names"]), _texts(e["tags"]))
                for e in facts["entries"]
            )
            return cls(entries, _texts(facts["words"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the words of a model: {error!r}") from error

    @cached_property
    def known(self) -> frozenset[str]:
        """Every single word that has a meaning for the model."""
        texts = [*self.words, *(name for entry in self.entries for name in entry.names)]
        return frozenset(w for text in texts for w in words_of(text))

    @cached_property
    def by_emoji(self) -> dict[str, str]:
        """Emoji without variation selector -> the commonest name."""
        return {_bare(e.emoji): e.names[0] for e in self.entries if e.names}


def _texts(values: Any) -> tuple[str, ...]:
    if isinstance(values, str) or not all(isinstance(v, str) for v in values):
        raise TypeError(f"{values!r} is no list of words")
    return tuple(values)


def _bare(emoji: str) -> str:
    return _SELECTORS.sub("", emoji)


def words_of(text: str) -> list[str]:
    """The words in lower case: "A cat's T-Rex" -> a, cat, t-rex."""
    found = _WORD.findall(text.lower().replace("’", "'"))
    return [re.sub(r"'s?$", "", word) for word in found]


def singulars(word: str) -> list[str]:
    """The word and what it may be the plural of: "cherries" -> cherries, cherrie, cherri, cherry."""
    found = [word]
    if word.endswith("s") and not word.endswith("ss"):
        found.append(word[:-1])
        if word.endswith("es"):
            found.append(word[:-2])
        if word.endswith("ies"):
            found.append(word[:-3] + "y")
        if word.endswith("ves"):
            found += [word[:-3] + "f", word[:-3] + "fe"]
    return found


# ---------------------------------------------------------------- emoji in a prompt

_NO_ARTICLE_AFTER = re.compile(
    r"(?:^|[\s,])(?:a|an|the|this|that|my|your|one|small|big|large|tiny|little|[\w-]+ed|"
    r"red|orange|yellow|green|blue|purple|pink|brown|gray|grey|black|white)\s*$",
    re.IGNORECASE,
)
_COUNT_BEFORE = re.compile(
    r"(?:^|[\s,])(?:[2-9]|two|three|four|five|six|many|some)(?:\s+[\w-]+)?\s*$", re.IGNORECASE
)


def expand_emoji(prompt: str, lexicon: Lexicon) -> str:
    """A prompt in which emoji that the model knows are words: "🐸 on 🍕" -> "a frog on a pizza".

    The same one several times is counted ("🐸🐸" -> "two frogs"), different ones are joined ("🐸🐰" ->
    "a frog and a rabbit"). Tones of skin are left out. Unknown emoji stay as they are.
    """
    names = lexicon.by_emoji
    if not names:
        return prompt
    text = _SKIN.sub("", _bare(prompt))
    longest_first = sorted(names, key=len, reverse=True)
    # Not a part of a longer emoji, whose parts are joined: a woman and a rocket are an astronaut.
    one = rf"(?<!{_JOINER})(?:{'|'.join(map(re.escape, longest_first))})(?!{_JOINER})"
    out, end = "", 0
    for run in re.finditer(rf"(?:{one})(?:\s*(?:{one}))*", text):
        before = out + text[end : run.start()]
        runs: list[tuple[str, int]] = []
        for emoji in re.findall(one, run.group()):
            if runs and runs[-1][0] == emoji:
                runs[-1] = (emoji, runs[-1][1] + 1)
            else:
                runs.append((emoji, 1))
        phrases = [
            _phrase(names[emoji], count, before if i == 0 else "")
            for i, (emoji, count) in enumerate(runs)
        ]
        said = phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
        gap = " " if before and before[-1].isalnum() else ""
        out, end = before + gap + said, run.end()
        if end < len(text) and text[end].isalnum():
            out += " "
    return out + text[end:]


def _phrase(name: str, count: int, before: str) -> str:
    """A name with the article or the number that it needs after `before`."""
    if count > 1:
        return f"{COUNTS.get(count, str(count))} {plural(name)}"
    if _COUNT_BEFORE.search(before):
        return plural(name)
    if _NO_ARTICLE_AFTER.search(before):
        return name
    return with_article(name)


def with_article(name: str) -> str:
    """ "frog" -> "a frog", "owl" -> "an owl", "jeans" -> "jeans", "cactus" -> "a cactus"."""
    head = re.split(r" (?:of|with) ", name)[0]
    many = head.endswith("s") and not head.endswith(("ss", "us", "eros"))
    if many or name.startswith(("the ", "a ", "an ")):
        return name
    vowel = name[0] in "aeiou" and not name.startswith(("uni", "ufo", "eu"))
    return ("an " if vowel else "a ") + name


def plural(name: str) -> str:
    """ "cat" -> "cats", "cup of coffee" -> "cups of coffee"; regular nouns only."""
    head, joint, rest = name.partition(" of ")
    if head.endswith("s") and not head.endswith(("ss", "us")):
        return name
    if head.endswith(("s", "x", "ch", "sh")):
        return head + "es" + joint + rest
    if re.search(r"[^aeiou]y$", head):
        return head[:-1] + "ies" + joint + rest
    return head + "s" + joint + rest


# ---------------------------------------------------------------- unknown words


class Unknown(NamedTuple):
    """A word of a prompt that the model has not learnt, and names of things near to it."""

    word: str
    nearest: tuple[str, ...]


def unknown_words(prompt: str, lexicon: Lexicon, most: int = 3) -> list[Unknown]:
    """The words of a prompt that mean nothing to the model, in their order, each once.

    Nothing is unknown to an empty lexicon: such a model has not said what it has learnt.
    """
    if not lexicon.entries:
        return []
    found: dict[str, Unknown] = {}
    for word in words_of(prompt):
        forms = singulars(word)
        if len(word) < 2 or any(f in lexicon.known or f in FUNCTION_WORDS for f in forms):
            continue
        if word not in found:
            found[word] = Unknown(word, nearest(word, lexicon, most))
    return list(found.values())


def nearest(word: str, lexicon: Lexicon, most: int = 3) -> tuple[str, ...]:
    """Names of things that go with the word, then those that are spelt like it."""
    forms = set(singulars(word))
    chosen = [e.names[0] for e in lexicon.entries if forms & set(e.tags)]
    spelt: dict[str, str] = {}
    for entry in lexicon.entries:
        for name in entry.names:
            for part in words_of(name):
                if len(part) > 2:
                    spelt.setdefault(part, name)
    close = difflib.get_close_matches(word, list(spelt), n=most, cutoff=0.75)
    chosen += [spelt[part] for part in close]
    return tuple(dict.fromkeys(chosen))[:most]


def describe(unknown: Sequence[Unknown]) -> str:
    """One sentence for the user; "" if every word is known."""
    if not unknown:
        return ""
    quoted = ", ".join(repr(u.word) for u in unknown)
    near = "; ".join(f"near {u.word!r}: {', '.join(u.nearest)}" for u in unknown if u.nearest)
    text = f"the model has not learnt {quoted}, and draws what it makes of the letters"
    return f"{text} ({near})" if near else text
