"""The emoji art at several sizes: rendered once at 256 pixels, and halved from there.

Files of one folder: ``art256.npy``, ``art128.npy``, ``art64.npy``, each (concepts, styles, size,
size, 4) uint8 with straight alpha, and ``concepts.json``. They are mapped into memory, so that
several processes share them and nothing is read that is not used.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from pellucid.data.emoji import (
    STYLES,
    Concept,
    EmojiArt,
    _bare,
    _slug,
    names_a_thing,
)

LARGE = 256
SIZES = (256, 128, 64)


def rows(names: Sequence[str] = ("concepts.tsv", "extra_concepts.tsv")) -> list[list[str]]:
    """The lines of the tables of concepts: emoji, names, set ("core", "more" or "extra")."""
    found = []
    for name in names:
        text = resources.files("pellucid.data").joinpath(name).read_text(encoding="utf-8")
        lines = [line.split("\t") for line in text.splitlines() if line and line[0] != "#"]
        found += lines[1:]
    return found


def concepts_of(emojibase: Path) -> list[Concept]:
    """Every concept of the tables with its slug and the keywords that name nothing else."""
    table = {_bare(e["emoji"]): e for e in json.loads(emojibase.read_text(encoding="utf-8"))}
    entries = [(emoji, tuple(names.split(", ")), table[_bare(emoji)]) for emoji, names, _ in rows()]
    named = {name for _, names, _ in entries for name in names}
    counts: dict[str, int] = {}
    for _, _, entry in entries:
        for tag in entry.get("tags", []):
            counts[tag] = counts.get(tag, 0) + 1
    return [
        Concept(
            emoji,
            names,
            tuple(
                tag
                for tag in entry.get("tags", [])
                if counts[tag] == 1 and tag not in named and names_a_thing(tag, entry["label"])
            ),
            _slug(entry["label"]),
        )
        for emoji, names, entry in entries
    ]


def svg_of(icons: dict, slug: str) -> str:
    """The SVG text of an icon of an Iconify set. ValueError if the set has none of that name."""
    name = slug
    if name not in icons["icons"]:
        name = icons.get("aliases", {}).get(name, {}).get("parent", name)
    if name not in icons["icons"]:
        raise ValueError(f"the icon set {icons.get('prefix')} has no picture called {slug!r}")
    icon = icons["icons"][name]
    w = icon.get("width", icons.get("width", 16))
    h = icon.get("height", icons.get("height", 16))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' viewBox="0 0 {w} {h}" width="{w}" height="{h}">{icon["body"]}</svg>'
    )


def draw_svg(svg: str, size: int) -> np.ndarray:
    """An SVG as (size, size, 4) uint8; drawn at twice the size and halved, as `emoji.render` does."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * size, height=2 * size)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX))


def render(packages: Path, folder: Path) -> None:
    """Draw every concept in every style into `folder`; what is complete there stays."""
    if (folder / "concepts.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    concepts = concepts_of(packages / "emojibase-data" / "en" / "data.json")
    shape = (len(concepts), len(STYLES))
    arrays = {
        size: np.lib.format.open_memmap(
            folder / f"art{size}.npy", "w+", np.uint8, (*shape, size, size, 4)
        )
        for size in SIZES
    }
    for s, package in enumerate(STYLES.values()):
        path = packages / "@iconify-json" / package / "icons.json"
        icons = json.loads(path.read_text(encoding="utf-8"))
        for c, concept in enumerate(concepts):
            picture = draw_svg(svg_of(icons, concept.slug), LARGE)
            arrays[LARGE][c, s] = picture
            for size in SIZES[1:]:
                small = Image.fromarray(picture).resize((size, size), Image.Resampling.BOX)
                arrays[size][c, s] = np.asarray(small)
    for array in arrays.values():
        array.flush()
    told = [[c.emoji, c.names, c.keywords, c.slug] for c in concepts]
    (folder / "concepts.json").write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")


def load(folder: Path, size: int = 64) -> EmojiArt:
    """The art at one size. ValueError if it was not rendered."""
    path = folder / "concepts.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no rendered emoji there")
    concepts = [
        Concept(emoji, tuple(names), tuple(keywords), slug)
        for emoji, names, keywords, slug in json.loads(path.read_text(encoding="utf-8"))
    ]
    return EmojiArt(concepts, np.load(folder / f"art{size}.npy", mmap_mode="r"))


def learnt(art: EmojiArt, sets: Sequence[str]) -> list[int]:
    """The concepts of these sets: of "core", "more", "extra"."""
    chosen = {emoji for emoji, _, kind in rows() if kind in sets}
    return [i for i, concept in enumerate(art.concepts) if concept.emoji in chosen]
