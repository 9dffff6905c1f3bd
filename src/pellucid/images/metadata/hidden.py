"""Texts that are hidden in the lowest bits of pixels, where they outlive the metadata.

NovelAI hides one in the alpha of its pictures, and an extension of A1111 in alpha or colours ("stealth
pnginfo"). The bits run down each column, the highest of a byte first: a mark of 15 letters, how many
bits follow (32 bits, big-endian), and the text in UTF-8, plain or packed by gzip.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pellucid.images.load import open_header
from pellucid.images.metadata.settings import is_json_object, json_object
from pellucid.images.png import MAX_UNPACKED, decoded

LOSSLESS = ("PNG", "WEBP")
# The channels, and the marks of a text that is plain and of one that is packed.
PLACES = (
    ([3], b"stealth_pnginfo", b"stealth_pngcomp"),
    ([0, 1, 2], b"stealth_rgbinfo", b"stealth_rgbcomp"),
)
HEAD = 15 + 4  # bytes of the mark and the length
GZIP = 31  # zlib's number for it


def hidden_texts(path: str | Path) -> dict[str, str]:
    """By their keys: NovelAI hides an object of texts, other programs one that is A1111's `parameters`.

    {} if there is none, or the picture cannot be decoded.
    """
    try:
        with open_header(path)[0] as image:
            if image.format not in LOSSLESS:
                return {}
            image.load()
            text = _hidden(image if image.mode in ("RGB", "RGBA") else image.convert("RGBA"))
    except Exception:  # a decoder can raise anything on malformed data
        return {}
    if not text.strip():
        return {}
    parts = json_object(text) if is_json_object(text) else {}
    if "Comment" in parts:
        return {key: part for key, part in parts.items() if isinstance(part, str)}
    return {"parameters": text}


def _hidden(image: Image.Image) -> str:
    for channels, plain, packed in PLACES:
        if max(channels) >= len(image.getbands()):
            continue
        head = _bytes(image, channels, 0, HEAD)
        length = int.from_bytes(head[15:], "big") // 8
        if head[:15] in (plain, packed) and 0 < length <= MAX_UNPACKED:
            data = _bytes(image, channels, HEAD, length)
            if head[:15] == packed:
                data = zlib.decompressobj(GZIP).decompress(data, MAX_UNPACKED)
            return decoded(data)
    return ""


def _bytes(image: Image.Image, channels: Sequence[int], start: int, count: int) -> bytes:
    """Bytes `start` to `start + count` of those in the lowest bits of these channels."""
    bits = 8 * (start + count)
    columns = min(math.ceil(bits / (image.height * len(channels))), image.width)
    pixels = np.asarray(image.crop((0, 0, columns, image.height)))[..., list(channels)]
    return np.packbits(pixels.swapaxes(0, 1).reshape(-1)[:bits] & 1).tobytes()[start:]
