"""Opening picture files of any origin: upright, in sRGB, without transparency, not too large."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageChops, TiffTags

from pellucid.images import png
from pellucid.images.colours import COLOURS, has_alpha, to_srgb

# Every further decoder is one more way in: Pillow opens EPS files with another program.
OPENED = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP")
MAX_SIDE = 16_384  # pixels
CLEAR = 8  # levels of alpha below this are transparent: brushes leave traces
MAX_PIXELS = 100_000_000
ORIENTATION = 0x0112  # EXIF tag
TURNS = {  # what makes a picture of this orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Source = str | Path | BinaryIO


class Mask(NamedTuple):
    """Which part of a picture is redrawn."""

    image: Image.Image
    """Mode "L": 255 is redrawn, 0 is kept."""
    reading: str | None
    """In words how its transparency was read; None: it has none."""


def open_image(source: Source) -> Image.Image:
    """The picture in a file as RGB: upright as its EXIF says, in sRGB, transparency laid on white.

    Raises ValueError: no such file, not a picture, truncated, more than MAX_SIDE pixels wide or
    high or MAX_PIXELS in all (checked in the header, before anything is decoded).
    """
    image = _flatten(to_srgb(_upright(source)))
    image.info.clear()  # the metadata describes the file, not these pixels
    return image


def open_with_alpha(source: Source) -> Image.Image:
    """As `open_image`, but RGBA if the picture may be transparent somewhere."""
    image = to_srgb(_upright(source))
    image = image.convert("RGBA") if has_alpha(image) else _flatten(image)
    image.info.clear()
    return image


def open_mask(source: Source) -> Mask:
    """The mask in a file.

    A picture that is transparent somewhere is redrawn where it is transparent, and its colours
    do not count (OpenAI's masks). If more than half of it is transparent and something is opaque,
    that is a layer of a drawing program, and is redrawn where the strokes are. Any other picture
    is redrawn where it is white (A1111's masks). Intermediate values are partly redrawn. Raises
    ValueError as `open_image` does.
    """
    image = _upright(source)
    if has_alpha(image):
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            clear = sum(alpha.histogram()[:CLEAR])
            if alpha.width * alpha.height / 2 < clear < alpha.width * alpha.height:
                return Mask(alpha, "it is mostly transparent, and is redrawn where it is opaque")
            return Mask(ImageChops.invert(alpha), "it is partly transparent, and is redrawn there")
    return Mask(_flatten(image).convert("L"), None)


def open_header(source: Source, any_size: bool = False) -> tuple[Image.Image, dict[str, str]]:
    """A picture that is not decoded yet, and the texts in it if it is a PNG.

    any_size: also of a size that will not be decoded. Raises ValueError as `open_image` does.
    """
    name = _name(source)
    if isinstance(source, str | Path) and not Path(source).is_file():
        raise ValueError(f"{name} is not a file; it must be a picture ({', '.join(OPENED)})")
    with warnings.catch_warnings():
        # The check below replaces Pillow's own warning about large pictures.
        warnings.simplefilter("ignore")
        try:
            image, texts = _open(source)
        except Image.DecompressionBombError:
            raise ValueError(too_large(name, "more than 178 million pixels")) from None
        except Exception as error:  # a decoder can raise anything on malformed data
            raise ValueError(f"{name} is not a picture ({', '.join(OPENED)})") from error
    width, height = image.size
    if not any_size and (max(width, height) > MAX_SIDE or width * height > MAX_PIXELS):
        image.close()
        raise ValueError(too_large(name, f"{width}x{height} pixels"))
    return image, texts


def is_picture(path: Path) -> bool:
    """Whether a file begins as the pictures do that are opened here, independent of its name."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(16)
    return (
        head.startswith((png.SIGNATURE, b"\xff\xd8\xff", b"GIF87a", b"GIF89a"))
        or (head[:4], head[8:12]) == (b"RIFF", b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"mif1"))
        # The length at the start of a safetensors file can look as the next two do.
        or (head[:4] in (b"II*\0", b"MM\0*") and head[4:8] != bytes(4))
        or head[:8] in (b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0")  # BigTIFF
        or (head[:2] == b"BM" and len(head) == 16 and head[6:10] == bytes(4))
    )


def too_large(name: str | Path, size: str) -> str:
    """The message for a picture of `size` that exceeds the limits."""
    return (
        f"{name} is too large: {size}; at most {MAX_SIDE} on a side and "
        f"{MAX_PIXELS // 1_000_000} million in all are allowed"
    )


def _name(source: Source) -> str | Path:
    return source if isinstance(source, str | Path) else "the picture"


def _open(source: Source) -> tuple[Image.Image, dict[str, str]]:
    if isinstance(source, str | Path):
        with Path(source).open("rb") as file:
            if file.read(len(png.SIGNATURE)) != png.SIGNATURE:
                return Image.open(source, formats=OPENED), {}
            return _of_png(png.read_png(file))
    head = source.read(len(png.SIGNATURE))
    source.seek(0)
    if head != png.SIGNATURE:
        return Image.open(source, formats=OPENED), {}
    return _of_png(png.read_png(source))


def _of_png(parts: png.Png) -> tuple[Image.Image, dict[str, str]]:
    image = Image.open(parts.pixels, formats=("PNG",))
    image.info |= {"exif": parts.exif, "icc_profile": parts.profile, COLOURS: parts.colours}
    if png.XMP in parts.texts:  # an orientation can be there
        image.info[png.XMP] = parts.texts[png.XMP]
    return image, parts.texts


def _upright(source: Source) -> Image.Image:
    with open_header(source)[0] as image:
        try:
            if image.format == "TIFF":  # the decoder turns it, and reads directories for that
                exif = image.getexif()
                for directory in TiffTags.TAGS_V2_GROUPS:
                    exif.pop(directory, None)
            image.load()
        except Exception as error:  # a decoder can raise anything on malformed data
            raise ValueError(f"{_name(source)} is truncated or damaged: {error}") from error
        turn = TURNS.get(_orientation(image))
        return image.copy() if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """1 to 8, as EXIF has it; 1, which is upright, if the EXIF is damaged."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # as above
        return 1


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip instead of scale
        levels = np.asarray(image).clip(0, 65535)
        if image.mode != "I" or levels.max(initial=0) > 255:  # 32 bits may hold 8, or 16
            levels = levels // 257
        image = Image.fromarray(levels.astype(np.uint8))
    if image.mode == "F":  # 0 to 1, as programs write it; Pillow takes 0 to 255
        levels = np.nan_to_num(np.asarray(image))
        levels = levels * 255 if levels.max(initial=0) <= 1 else levels
        image = Image.fromarray(levels.clip(0, 255).round().astype(np.uint8))
    if has_alpha(image):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
