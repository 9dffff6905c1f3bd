"""Embeddings in pictures, as A1111 shares them: in a text of a PNG, or in the pixels of a lossless one.

In the pixels are the lower halves of the bytes left of the picture and the upper ones right of it, each
in the lowest four bits of the colours, with a black column between. A fixed sequence of numbers makes
them look like noise.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pellucid.images.load import open_header
from pellucid.images.metadata.settings import json_object
from pellucid.images.metadata.texts import read_texts
from pellucid.safetensors_header import CheckpointError

KEY = "sd-ti-embedding"
MULTIPLIER, INCREMENT = 1664525, 1013904223  # of a linear congruential generator modulo 2^32
LOSSLESS = ("PNG", "WEBP")
HALF = 15  # the lowest four bits
MOST = 8 << 20  # bytes of the JSON; 75 vectors of SDXL's wider tower have a quarter of it
LARGEST = 8 << 20  # pixels of a picture with an embedding in them


def embedding_in(path: Path) -> dict[str, Any] | None:
    """A1111's object in a picture: `name`, and the vectors in `string_to_param`; None: there is none.

    Raises CheckpointError if it is damaged, or the picture is; ValueError if it is no picture.
    """
    text = read_texts(path).get(KEY)
    try:
        data = _in_pixels(path) if text is None else base64.b64decode(text)
        if data is None:
            return None
        if len(data) > MOST:
            raise ValueError(f"it is larger than {MOST >> 20} MB")
        return json_object(data.decode())
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path} has a damaged embedding in it: {error}") from error


def embedding_word(path: Path) -> str | None:
    """The word of the embedding in a picture; None if there is none that can be read."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return _word(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=1000)  # a server looks at its folder for each request
def _word(path: Path, *version: int) -> str | None:
    try:
        content = embedding_in(path)
    except ValueError:
        return None
    return None if content is None else word_of(content, path)


def word_of(content: Mapping[str, Any], path: Path) -> str:
    """The name that it has; without one, that of its file."""
    name = content.get("name")
    return name if isinstance(name, str) and name.strip() else path.stem


def _in_pixels(path: Path) -> bytes | None:
    """The JSON in the pixels; None: there is none."""
    with open_header(path)[0] as image:
        if image.format not in LOSSLESS or image.width * image.height > LARGEST:
            return None
        try:
            pixels = np.asarray(image.convert("RGB"))
        except Exception as error:  # a decoder can raise anything on malformed data
            raise CheckpointError(f"{path} is truncated or damaged: {error}") from error
    lit = (pixels > 0).all(2)
    columns, rows = np.flatnonzero(np.any(lit, 0)), np.flatnonzero(np.any(lit, 1))
    if not len(columns):
        return None
    halves = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & HALF
    black = np.flatnonzero(~halves.any((0, 2)))
    if len(black) < 2:
        return None
    low, high = halves[:, : black[0]].ravel(), halves[:, black[-1] + 1 :].ravel()
    if not 0 < len(low) == len(high):
        return None
    mask = _sequence(len(low))
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress((((high ^ mask) << 4) | (low ^ mask)).tobytes(), MOST)
    except zlib.error:
        return None  # a picture with black lines
    return data if unpacker.eof else None


def _sequence(count: int) -> np.ndarray:
    """Numbers below 16: x = MULTIPLIER x + INCREMENT from 0, modulo 2^32, then 255, then 16."""
    values, factor, summand = np.array([INCREMENT], np.uint32), MULTIPLIER, INCREMENT
    while len(values) < count:  # those so far give as many further ones
        values = np.concatenate([values, values * np.uint32(factor) + np.uint32(summand)])
        factor, summand = factor * factor % 2**32, (factor * summand + summand) % 2**32
    return (values[:count] % 255).astype(np.uint8) & HALF
