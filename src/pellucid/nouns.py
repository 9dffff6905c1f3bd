"""English nouns: their articles and plurals."""

from __future__ import annotations

import re

_IRREGULAR = {
    "mouse": "mice",
    "computer mouse": "computer mice",
    "tooth": "teeth",
    "foot": "feet",
    "goose": "geese",
    "man": "men",
    "woman": "women",
    "old man": "old men",
    "old woman": "old women",
    "fireman": "firemen",
    "policeman": "policemen",
    "knife": "knives",
    "leaf": "leaves",
    "wolf": "wolves",
    "elf": "elves",
    "loaf": "loaves",
    "scarf": "scarves",
    "ox": "oxen",
    "die": "dice",
    "cactus": "cacti",
    "fish": "fish",
    "sheep": "sheep",
    "deer": "deer",
    "bison": "bison",
    "squid": "squid",
    "moose": "moose",
    "shrimp": "shrimp",
}


def plural(name: str) -> str | None:
    """ "cat" -> "cats", "cup of coffee" -> "cups of coffee"; None of what has no plural of its own.

    "jeans" and "grapes" are plural already, and "earth" is one of its kind.
    """
    head, joint, rest = name.partition(" of ")
    if not joint:
        head, joint, rest = name.partition(" with ")
    for words, many in _IRREGULAR.items():
        if head == words or head.endswith(" " + words):
            return head[: len(head) - len(words)] + many + joint + rest
    if not re.fullmatch(r"[a-z -]+", head) or name in _NO_PLURAL:
        return None
    if head.endswith("s") and not head.endswith(("ss", "us", "os")):
        return None
    if head.endswith(("s", "x", "ch", "sh")) or head in ("tomato", "potato", "mango"):
        head += "es"
    elif re.search(r"[^aeiou]y$", head):
        head = head[:-1] + "ies"
    elif head.endswith("fe"):
        head = head[:-2] + "ves"
    else:
        head += "s"
    return head + joint + rest


_SINGULARS = {many: words for words, many in _IRREGULAR.items() if many != words}
_SINGULARS |= {"children": "child", "people": "person"}


def singulars(word: str) -> list[str]:
    """The word and what it may be the plural of: "cherries" -> cherries, cherrie, cherri, cherry."""
    found = [word]
    if word in _SINGULARS:
        found.append(_SINGULARS[word])
    if word.endswith("s") and not word.endswith("ss"):
        found.append(word[:-1])
        if word.endswith("es"):
            found.append(word[:-2])
        if word.endswith("ies"):
            found.append(word[:-3] + "y")
        if word.endswith("ves"):
            found += [word[:-3] + "f", word[:-3] + "fe"]
    return found


def with_article(name: str) -> str:
    """ "frog" -> "a frog", "owl" -> "an owl", "jeans" -> "jeans", "cactus" -> "a cactus"."""
    head = name.split(" of ")[0].split(" with ")[0]
    many = head.endswith("s") and not head.endswith(("ss", "us", "eros"))
    if many or name.startswith(("the ", "a ", "an ")):
        return name
    vowel = name[0] in "aeiou" and not name.startswith(("uni", "ufo", "eu"))
    return ("an " if vowel else "a ") + name


_ONE_OF_A_KIND = """
earth, world, sun, saturn, rain, ice, money, milk, beer, rice, honey, tea, wine, sushi, bacon, pasta,
spaghetti, salad, popcorn, corn, maize, broccoli, garlic, dna, soap, bread, santa, dracula, infinity,
peace, heart eyes
"""
_NO_PLURAL = frozenset(re.split(r",\s+", _ONE_OF_A_KIND.strip()))
