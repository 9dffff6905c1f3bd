"""The header of a safetensors file, and the errors of all files of weights."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HEADER_BYTES = 2**24  # of a safetensors file; those of the largest models have a sixth of it
BEGINNING = 200  # bytes that tell what a file is instead


class CheckpointError(ValueError):
    """A file that cannot be read as a model, or a model that cannot be written; the message says
    why."""


class UnknownPrediction(CheckpointError):
    """A model whose file does not say what its network predicts, which no one has said either."""

    def __init__(self, path: Path, title: str, silent: str) -> None:
        super().__init__(
            f"{path} is {title}, and {silent}: give --prediction eps (the 512 pixel models) or "
            "--prediction v (the 768 pixel models)"
        )


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: key -> dtype, shape, data_offsets; `__metadata__`.

    Checked before anything else touches the file, because a download that stopped halfway and a
    pickle with the wrong name are what goes wrong most. Raises CheckpointError that says which it
    is.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; a .safetensors file is wanted")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
        length = int.from_bytes(start[:8], "little")
        if size == 0:
            raise CheckpointError(f"{path} is empty; a .safetensors file is wanted")
        if len(start) < 9:
            raise CheckpointError(
                f"{path} is truncated or no safetensors file: it has only {size} bytes"
            )
        if start[8:] != b"{" or length > HEADER_BYTES:
            if start[0] == 0x80 or start[:4] == b"PK\x03\x04":
                raise CheckpointError(
                    f"{path} is a pickle (torch.save), whatever its name says; loading one could "
                    "run code. A safetensors file is wanted"
                )
            raise CheckpointError(f"{path} is {instead_of_weights(start + file.read(BEGINNING))}")
        text = start[8:] + file.read(length - 1)
    if len(text) < length:
        raise CheckpointError(
            f"{path} is truncated: its header is {length} bytes long, the file {size} bytes"
        )
    try:
        header = dict(json.loads(text))
        dict(header.get("__metadata__") or {})
        entries = [value for key, value in header.items() if key != "__metadata__"]
        if not all(isinstance(side, int) for entry in entries for side in entry["shape"]):
            raise ValueError("a shape is not made of integers")
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries), default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file: its header cannot be read"
        ) from error
    if end > size:
        raise CheckpointError(
            f"{path} is truncated: {end} bytes are announced, {size} are there; copy it again"
        )
    if end < size:
        raise CheckpointError(
            f"{path} is not a safetensors file: {size - end} bytes follow the end that it announces"
        )
    return header


def instead_of_weights(start: bytes) -> str:
    """What a file that begins so is, which is no safetensors file, and what is wanted."""
    if start.startswith(b"GGUF"):
        return "a GGUF file, which is not read; a .safetensors file is wanted"
    text = start.decode("utf-8", "replace").strip()
    if text.lower().startswith(("<!doctype html", "<html")):
        return "a web page, as a download that went wrong leaves behind; download the file itself"
    if text.startswith("version https://git-lfs"):
        return "Git LFS's note of where the weights are; `git lfs pull` fetches the weights"
    words = " ".join(text.split())
    if words and words[:-1].isprintable() and "\ufffd" not in words[:-1]:  # the last may be cut
        return f"a text and not a safetensors file, which is wanted: {words[:60]!r}"
    return "not a safetensors file; a checkpoint in that format is wanted"


def first_keys(keys: Iterable[str], count: int = 3) -> str:
    """The first keys of a file for a message, of which none is long."""
    return ", ".join(key[:80] for key in itertools.islice(keys, count)) or "nothing"
