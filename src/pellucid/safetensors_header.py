"""The header of a safetensors file, and the errors that all files of weights share."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pellucid.messages import FieldMessage

HEADER_BYTES = 2**24  # the largest published models have a sixth of it
START_BYTES = 200  # enough to recognize what a file is instead
GAN_ENTRY = "pellucid_gan"  # of the metadata of a GAN


class CheckpointError(ValueError):
    """A file that cannot be read as a model, or a model that cannot be written; says why."""


class UnknownPrediction(CheckpointError):
    """A model whose file does not say what its network predicts, where the caller did not either."""

    def __init__(self, path: Path, title: str) -> None:
        super().__init__(
            FieldMessage(
                "{path} is {title}, and does not say what its network predicts: {prediction} must be "
                "given, eps (the 512 pixel models) or v (the 768 pixel models)",
                path=path,
                title=title,
            )
        )


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: key -> dtype, shape, data_offsets; `__metadata__`.

    It is checked before anything else reads the file, because interrupted downloads and pickles
    with the wrong name are the most common problems. Raises CheckpointError that says what is wrong.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; expected a .safetensors file")
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"{path} is empty; expected a .safetensors file")
    with path.open("rb") as file:
        start = file.read(9)
        if len(start) < 9:
            raise CheckpointError(
                f"{path} is truncated or not a safetensors file: it has only {size} bytes"
            )
        length = int.from_bytes(start[:8], "little")
        if start[8:] != b"{" or length > HEADER_BYTES:
            raise CheckpointError(
                f"{path} is {_instead_of_weights(start + file.read(START_BYTES))}"
            )
        text = start[8:] + file.read(length - 1)
    if len(text) < length:
        raise CheckpointError(
            f"{path} is truncated: its header has {length} bytes, the file {size} bytes"
        )
    header, end = _parse(path, text)
    if end > size:
        raise CheckpointError(
            f"{path} is truncated: its header announces {end} bytes, the file has {size}; "
            "copy it again"
        )
    if end < size:
        raise CheckpointError(
            f"{path} is not a safetensors file: {size - end} bytes follow its announced end"
        )
    return header


def holds_gan(path: Path) -> bool:
    """Whether `path` is a GAN's file, which `checkpoints.load_gan` reads and `load` does not."""
    try:
        return GAN_ENTRY in (read_header(path).get("__metadata__") or {})
    except CheckpointError:
        return False


def _parse(path: Path, text: bytes) -> tuple[dict[str, Any], int]:
    """The header, and where the last tensor ends in the file."""
    try:
        header = dict(json.loads(text))
        dict(header.get("__metadata__") or {})
        entries = [value for key, value in header.items() if key != "__metadata__"]
        if not all(isinstance(side, int) for entry in entries for side in entry["shape"]):
            raise ValueError("a shape is not made of integers")
        last = max((entry["data_offsets"][1] for entry in entries), default=0)
        return header, 8 + len(text) + last
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file: its header cannot be read"
        ) from error


def _instead_of_weights(start: bytes) -> str:
    """What a file is that begins like this and is not a safetensors file."""
    if start[:1] == b"\x80" or start[:4] == b"PK\x03\x04":
        return (
            "a pickle (torch.save), although its name says otherwise; loading one could run code. "
            "Expected a safetensors file"
        )
    if start.startswith(b"GGUF"):
        return "a GGUF file, a format that is not supported; expected a .safetensors file"
    text = start.decode("utf-8", "replace").strip()
    if text.lower().startswith(("<!doctype html", "<html")):
        return "a web page, as a failed download leaves behind; download the file itself"
    if text.startswith("version https://git-lfs"):
        return "a Git LFS pointer to the weights; `git lfs pull` fetches the weights"
    words = " ".join(text.split())
    if words and words[:-1].isprintable() and "\ufffd" not in words[:-1]:  # the last may be cut
        return f"a text file and not a safetensors file: {words[:60]!r}"
    return "not a safetensors file; expected a checkpoint in that format"


def first_keys(keys: Iterable[str], count: int = 3) -> str:
    """The first keys of a file, for a message."""
    return ", ".join(key[:80] for key in itertools.islice(keys, count)) or "nothing"
