"""What the weights say of the words that they were taught."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pellucid.data.emoji import COLORS, STYLES, EmojiArt, _bare
from pellucid.lexicon import Entry, Lexicon

OTHER = ("small", "tiny", "little", "big", "two", "three", "four", "grey")
"""Words of the captions, beside things, colours and styles, that change the picture."""


def lexicon(art: EmojiArt, learnt: Sequence[int], emojibase: Path) -> Lexicon:
    """The learnt concepts with their names and keywords, and emojibase's tags as what is near."""
    table = {_bare(e["emoji"]): e for e in json.loads(emojibase.read_text(encoding="utf-8"))}
    entries = []
    for index in learnt:
        concept = art.concepts[index]
        tags = table.get(_bare(concept.emoji), {}).get("tags", [])
        names = (*concept.names, *concept.keywords)
        entries.append(Entry(concept.emoji, names, tuple(t for t in tags if t not in names)))
    return Lexicon(tuple(entries), (*COLORS, *STYLES, *OTHER))
