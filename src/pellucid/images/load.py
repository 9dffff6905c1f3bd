"""Opening picture files of any origin: upright, without transparency, and not too large."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageChops, ImageOps

MAX_SIDE = 16_384  # pixels
MAX_PIXELS = 100_000_000
ORIENTATION = 0x0112  # EXIF tag


def open_image(source: str | Path | BinaryIO) -> Image.Image:
    """The picture in a file as RGB: upright as its EXIF says, transparency laid on white.

    Raises ValueError: no such file, not a picture, truncated, more than MAX_SIDE pixels wide or
    high or MAX_PIXELS in all (checked in the header, before anything is decoded).
    """
    return _flatten(_upright(source))


def open_mask(source: str | Path | BinaryIO) -> Image.Image:
    """The mask in a file, mode "L": 255 is redrawn, 0 is kept, values between are mixed.

    A picture with transparency is redrawn where it is transparent, and its colours do not count
    (OpenAI's masks). Any other is redrawn where it is white (A1111's masks). Raises ValueError as
    `open_image` does.
    """
    image = _upright(source)
    if _has_alpha(image):
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            return ImageChops.invert(alpha)
    return _flatten(image).convert("L")


def picture_size(source: str | Path) -> tuple[int, int]:
    """Width and height as `open_image` returns them, from the header; ValueError as there."""
    with _header(source) as image:
        width, height = image.size
        try:
            turned = image.getexif().get(ORIENTATION, 1) >= 5  # 5 to 8 are rotated by 90 degrees
        except Exception as error:  # decoders meet hostile bytes with every kind of exception
            raise ValueError(f"{source} is truncated or damaged: {error}") from error
    return (height, width) if turned else (width, height)


def _header(source: str | Path | BinaryIO) -> Image.Image:
    name = source if isinstance(source, str | Path) else "the picture"
    if isinstance(source, str | Path) and not Path(source).is_file():
        raise ValueError(f"{name} is not a file; it must be a picture (PNG, JPEG, WebP, ...)")
    with warnings.catch_warnings():
        # The check below replaces Pillow's own warning about large pictures.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(source)
        except Image.DecompressionBombError:
            raise ValueError(too_large(name, "more than 178 million pixels")) from None
        except Exception as error:  # decoders meet hostile bytes with every kind of exception
            raise ValueError(f"{name} is not a picture (PNG, JPEG, WebP, ...)") from error
    width, height = image.size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        image.close()
        raise ValueError(too_large(name, f"{width}x{height} pixels"))
    return image


def _upright(source: str | Path | BinaryIO) -> Image.Image:
    name = source if isinstance(source, str | Path) else "the picture"
    with _header(source) as image:
        try:
            image.load()
            return ImageOps.exif_transpose(image)
        except Exception as error:  # as above
            raise ValueError(f"{name} is truncated or damaged: {error}") from error


def too_large(name: str | Path, size: str) -> str:
    """The message for a picture of `size` that exceeds the limits."""
    return (
        f"{name} is too large: {size}; at most {MAX_SIDE} on a side and "
        f"{MAX_PIXELS // 1_000_000} million in all are allowed"
    )


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip instead of scale
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if _has_alpha(image):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
