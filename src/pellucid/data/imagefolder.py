"""A folder of pictures with captions.

The caption of a picture is searched in this order:

* ``metadata.jsonl`` or ``metadata.csv`` in the folder, with the fields ``file_name`` and ``text``
  (the convention of Hugging Face's ImageFolder); pictures that it does not name are left out;
* a text file next to the picture, ``rabbit.txt`` or ``rabbit.caption`` for ``rabbit.png``;
* the name of the folder inside the folder, ``rabbits/17.png`` (one label for each class), without
  the number in front of ``10_rabbits`` (kohya's repeats, which are not applied).

What systems leave in folders (``._17.png``, ``__MACOSX``, ``.ipynb_checkpoints``, ``@eaDir``) is
neither a picture nor a caption.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pellucid.data import Pictures, SourceOptions
from pellucid.files import read_text
from pellucid.images.load import open_image
from pellucid.images.pixels import fit

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff")
"""Endings of picture files, in lower case."""

METADATA = ("metadata.jsonl", "metadata.csv")
SIDECARS = (".txt", ".caption")
LITTER = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN")
"""Folders of systems; hidden files and folders, whose names begin with a dot, are litter too."""


def pictures(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every picture of a folder with its caption, in the order of their names.

    Pictures are not opened here. A label folder's ``_`` and ``-`` are read as spaces.

    Raises:
        ValueError: there is no such folder; it has no pictures; a picture has no caption; captions
            name files that are not there; a line of the metadata cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    files = _files(folder)
    found = [path for path in files if path.suffix.lower() in SUFFIXES]
    metadata = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(metadata) > 1:
        raise ValueError(f"{folder}: has both {' and '.join(METADATA)}; keep one")
    if not found and not metadata:
        raise ValueError(f"{folder}: no pictures in it ({', '.join(SUFFIXES)})")
    if metadata:
        yield from _listed(metadata[0])
        return
    named = {(path.parent, path.stem) for path in found}
    sidecars = {path.with_suffix(path.suffix.lower()): path for path in files if _is_sidecar(path)}
    orphans = [path for path in sidecars.values() if (path.parent, path.stem) not in named]
    # A lone README.txt is no caption, but captions whose picture is missing are a mistake.
    orphans = [p for p in orphans if p.stem.lower() not in ("readme", "license", "licence")]
    if orphans:
        raise ValueError(f"{orphans[0]}: a caption without a picture ({len(orphans)} of them)")
    pairs = [(path, _caption_of(path, folder, sidecars)) for path in found]
    silent = [path for path, text in pairs if text is None]
    if silent:
        raise ValueError(
            f"{silent[0]}: no caption for it ({len(silent)} such pictures); write a "
            f"{METADATA[0]}, a {silent[0].stem}.txt, or put it in a folder named after what it shows"
        )
    yield from ((path, text) for path, text in pairs if text is not None)


class ImageFolder(Pictures):
    """The pictures of a folder in memory."""

    @classmethod
    def load(cls, folder: Path, size: int) -> ImageFolder:
        """Read them all; each fills size x size. ValueError as `pictures` and `open_image` say."""
        pairs = list(pictures(folder))
        pixels = [np.asarray(fit(open_image(path), size, size)) for path, _ in pairs]
        return cls(np.stack(pixels), [text for _, text in pairs])


def source(options: SourceOptions, mix: Mapping[str, float]) -> ImageFolder:
    """The folder `options.data`."""
    return ImageFolder.load(Path(options.data), options.size)


def _files(folder: Path) -> list[Path]:
    """All files of a folder and of the folders in it, without what systems leave there."""

    def is_litter(path: Path) -> bool:
        parts = path.relative_to(folder).parts
        return any(part.startswith(".") or part in LITTER for part in parts)

    return [path for path in sorted(folder.rglob("*")) if not is_litter(path) and path.is_file()]


def _is_sidecar(path: Path) -> bool:
    return path.suffix.lower() in SIDECARS


def _caption_of(path: Path, folder: Path, sidecars: Mapping[Path, Path]) -> str | None:
    """sidecars: each file by its path with an ending in lower case."""
    for suffix in SIDECARS:
        sidecar = sidecars.get(path.with_suffix(suffix))
        if sidecar is not None:
            return " ".join(read_text(sidecar).split())
    if path.parent == folder:
        return None
    label = re.sub(r"^\d+_(?=.)", "", path.parent.name)
    return label.replace("_", " ").replace("-", " ").strip()


def _listed(metadata: Path) -> list[tuple[Path, str]]:
    """The pictures that a metadata file names. Checked as a whole before any is given out."""
    pairs: list[tuple[Path, str]] = []
    for number, row in _rows(metadata):
        name, text = row.get("file_name"), row.get("text")
        if not isinstance(name, str) or not name or not isinstance(text, str):
            raise ValueError(f"{metadata}, line {number}: needs file_name and text, both strings")
        root, path = metadata.parent.resolve(), (metadata.parent / name).resolve()
        if not path.is_relative_to(root):
            raise ValueError(f"{metadata}, line {number}: {name} lies outside the folder")
        if not path.is_file():
            raise ValueError(f"{metadata}, line {number}: {name} is not in the folder")
        pairs.append((metadata.parent / name, text.removeprefix("\ufeff")))
    if not pairs:
        raise ValueError(f"{metadata}: names no pictures")
    return sorted(pairs)


def _rows(metadata: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Line number and fields of each entry."""
    text = read_text(metadata)
    # Only a newline ends a line: JSON strings may hold other separators that splitlines() knows.
    lines = text.split("\n")
    if metadata.suffix == ".csv":
        excel = lines[0].count(";") > lines[0].count(",")  # in countries where the comma is decimal
        reader = csv.DictReader(text.splitlines(keepends=True), delimiter=";" if excel else ",")
        if not {"file_name", "text"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{metadata}, line 1: the columns file_name and text are needed")
        for row in reader:
            yield reader.line_num, dict(row)
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{metadata}, line {number}: not JSON ({error.msg})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{metadata}, line {number}: not an object with file_name and text")
        yield number, row
