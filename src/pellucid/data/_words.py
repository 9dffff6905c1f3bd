"""The words of the emoji art, as the file of a model that learned them lists them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pellucid.data.emoji import COLORS, EMOJIBASE, STYLES, EmojiArt, bare
from pellucid.lexicon import Entry, Lexicon

OTHERS = ("small", "tiny", "little", "big", "large", "two", "three", "four", "grey", "white")
"""Words of the captions that change the picture and are neither things, nor colours, nor styles."""


def lexicon_of(art: EmojiArt, learned: Sequence[int], packages: Path | None) -> Lexicon:
    """The concepts of `art` with these numbers: their names and keywords, and as what goes with
    them the tags of emojibase, in a node_modules folder; without one there are none."""
    table = {}
    if packages is not None:
        path = packages / EMOJIBASE
        if not path.is_file():
            raise ValueError(f"{path} is not a file; expected the names of emojibase-data")
        table = {bare(e["emoji"]): e for e in json.loads(path.read_text(encoding="utf-8"))}
    entries = []
    for index in learned:
        concept = art.concepts[index]
        names = (*concept.names, *concept.keywords)
        tags = table.get(bare(concept.emoji), {}).get("tags", [])
        entries.append(Entry(concept.emoji, names, tuple(t for t in tags if t not in names)))
    return Lexicon(tuple(entries), (*COLORS, *STYLES, *OTHERS))
