"""Picture files that say how they were made: Pellucid's JSON, and the text of A1111."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, PngImagePlugin

from pellucid.files import new_file
from pellucid.images.load import open_header
from pellucid.images.parameters import write_parameters

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

# EXIF tags: A1111's text is where other programs expect it, the JSON next to it.
EXIF_IFD, USER_COMMENT, IMAGE_DESCRIPTION = 0x8769, 0x9286, 0x010E


class Metadata(NamedTuple):
    """The metadata in a picture; None where there is none."""

    request: dict[str, Any] | None  # Pellucid's own JSON
    parameters: str | None  # the A1111 text


def save_image(
    image: Image.Image, path: str | Path, request: Mapping[str, Any] | None = None
) -> None:
    """Write a picture in the format of its suffix (.png, .jpg, .webp), with the request inside.

    request: plain JSON values under Pellucid's names. The file appears whole or not at all. Raises
    ValueError: another suffix, no such folder, a full disk, a request too long for JPEG (64 kB).
    """
    path = Path(path)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path} must end in {', '.join(FORMATS)}, got {path.suffix!r}")
    options: dict[str, Any] = {"quality": 95} if kind == "JPEG" else {}
    if kind == "WEBP":
        options = {"lossless": True}
    if request is not None and kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", _encodable(write_parameters(request)))
        info.add_text("pellucid", json.dumps(request))
        options["pnginfo"] = info
    elif request is not None:
        exif = Image.Exif()
        text = _encodable(write_parameters(request))
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
        exif[IMAGE_DESCRIPTION] = json.dumps(request)
        options["exif"] = exif.tobytes()
        if kind == "JPEG" and len(options["exif"]) > 65_533:
            raise ValueError(f"{path}: the request is too long for a JPEG (64 kB); use .png")
    with new_file(path) as temporary:
        image.save(temporary, kind, **options)


def read_metadata(path: str | Path) -> Metadata:
    """The metadata that `save_image` or A1111 wrote. ValueError if the file is not a picture."""
    image, texts = open_header(path, any_size=True)
    with image:
        try:
            exif = image.getexif()
            comment, about = exif.get_ifd(EXIF_IFD).get(USER_COMMENT), exif.get(IMAGE_DESCRIPTION)
        except Exception:  # decoders meet hostile bytes with every kind of exception
            comment, about = None, None
        parameters = texts.get("parameters", _user_comment(comment))
        text = texts.get("pellucid", about)
    try:
        request = json.loads(text) if text else None
    except (ValueError, TypeError, RecursionError):
        request = None  # another program may have written a description
    return Metadata(
        request if isinstance(request, dict) else None,
        None if parameters is None else str(parameters),
    )


def _encodable(text: str) -> str:
    # Python represents invalid UTF-8 on the command line as lone surrogates.
    return text.encode("utf-8", "replace").decode("utf-8")


def _user_comment(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        return None
    code, text = value[:8], value[8:]
    if code == b"UNICODE\0":
        return text.decode("utf-16-be", "replace")
    return (text if code == b"ASCII\0\0\0" else value).decode("utf-8", "replace")
