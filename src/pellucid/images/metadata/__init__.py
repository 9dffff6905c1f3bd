"""Picture files that say how they were made.

Written are Pellucid's JSON and the text of A1111; read is what many programs write (`programs`).
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, PngImagePlugin

from pellucid.files import new_file
from pellucid.images.metadata import programs
from pellucid.images.metadata.hidden import hidden_texts
from pellucid.images.metadata.programs import a1111
from pellucid.images.metadata.settings import RecordedSettings, parse_json
from pellucid.images.metadata.texts import EXIF_IFD, USER_COMMENT, read_texts
from pellucid.images.parameters import write_parameters
from pellucid.images.png import XMP
from pellucid.plugins import discover

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

KEY = re.compile("[ -~]{1,79}")  # of a text in a PNG

# EXIF tags: A1111's text is where other programs expect it, the JSON next to it.
IMAGE_DESCRIPTION = 0x010E
BYTE, UNDEFINED = 1, 7  # types of EXIF


class Metadata(NamedTuple):
    """The metadata in a picture; None where there is none."""

    request: dict[str, Any] | None  # Pellucid's own JSON
    parameters: str | None  # the A1111 text
    settings: RecordedSettings | None = None  # what another program recorded


def save_image(
    image: Image.Image,
    path: str | Path,
    request: Mapping[str, Any] | None = None,
    replace: bool = True,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write a picture in the format of its suffix (.png, .jpg, .webp), with the request inside.

    request: plain JSON values under Pellucid's names. texts: others' texts by their keys; only a PNG
    has room for them. The file appears whole or not at all; replace as in `files.new_file`. Raises
    ValueError: another suffix, no such folder, a full disk, a request too long for JPEG (64 kB).
    """
    kind, options = format_of(Path(path), request)
    if kind == "JPEG" and image.mode == "RGBA":
        raise ValueError(f"{path}: a JPEG cannot be transparent; use .png or .webp")
    if kind == "PNG" and texts:
        info = options.setdefault("pnginfo", PngImagePlugin.PngInfo())
        for key, text in texts.items():
            info.add_text(key, _encodable(text))
    with new_file(path, replace=replace) as temporary:
        image.save(temporary, kind, **options)


def format_of(path: Path, request: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """The format of a path, and Pillow's options for it with the request; errors as `save_image`."""
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path} must end in {', '.join(FORMATS)}, got {path.suffix!r}")
    options: dict[str, Any] = {"quality": 95} if kind == "JPEG" else {}
    if kind == "WEBP":
        options = {"lossless": True}
    if kind == "PNG":  # three times as fast as zlib's default, and smaller for what models draw
        options = {"compress_type": zlib.Z_RLE}
    if request is not None and kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", _encodable(write_parameters(request)))
        info.add_text("pellucid", json.dumps(request))
        options["pnginfo"] = info
    elif request is not None:
        options["exif"] = _exif(request)
        if kind == "JPEG" and len(options["exif"]) > 65_533:
            raise ValueError(f"{path}: the request is too long for a JPEG (64 kB); use .png")
    return kind, options


def read_metadata(path: str | Path) -> Metadata:
    """What made a picture, as `save_image` or another program recorded it.

    ValueError if the file is not a picture.
    """
    texts = _texts(path)
    return Metadata(_request(texts), a1111.text_of(texts), _settings(texts))


def _texts(path: str | Path) -> dict[str, str]:
    """The texts in a picture; if they are of no known program, also those hidden in its pixels."""
    texts = read_texts(path)
    known = discover(programs.__name__).values()
    if _request(texts) is None and not any(module.matches(texts) for module in known):
        return texts | hidden_texts(path)
    return texts


def _request(texts: Mapping[str, str]) -> dict[str, Any] | None:
    """Pellucid's own JSON."""
    text = texts.get("pellucid", texts.get("ImageDescription", ""))
    try:
        request = parse_json(text)
    except ValueError:
        return None  # another program may have written a description
    if not isinstance(request, dict) or ("pellucid" not in texts and "prompt" not in request):
        return None
    return request


def upscaled(
    path: str | Path, upscaler: str, scale: float
) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """What a picture that is enlarged from the one at `path` is stored with: the request and the
    texts for `save_image`.

    Pellucid's record says by what it was enlarged; A1111's text does in that program's words.
    """
    found = read_metadata(path)
    if found.request is not None:
        return found.request | {"upscaled": {"by": upscaler, "scale": scale}}, {}
    texts = {k: t for k, t in _texts(path).items() if KEY.fullmatch(k)}
    if "Orientation" in texts.get(XMP, ""):  # of the old picture; the new one is upright
        del texts[XMP]
    parameters = found.parameters or texts.get("parameters")
    if parameters is not None:
        more = f"Postprocess upscale by: {scale:g}, Postprocess upscaler: {upscaler}"
        texts["parameters"] = f"{parameters}, {more}"
    return None, texts


def _settings(texts: Mapping[str, str]) -> RecordedSettings | None:
    """What the first program recorded whose texts these are; None if it is no known one."""
    for module in discover(programs.__name__).values():
        if module.matches(texts):
            try:
                return module.read(texts)._replace(program=module.PROGRAM)
            except ValueError as error:
                return RecordedSettings({}, program=module.PROGRAM, problem=str(error))
            except (KeyError, TypeError, AttributeError) as error:
                problem = f"its form is not known ({type(error).__name__}: {str(error)[:80]})"
                return RecordedSettings({}, program=module.PROGRAM, problem=problem)
    return None


def _exif(request: Mapping[str, Any]) -> bytes:
    """A1111's text as the comment, and Pellucid's JSON as the description."""
    exif = Image.Exif()  # big-endian
    text = _encodable(write_parameters(request))
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
    exif[IMAGE_DESCRIPTION] = json.dumps(request)
    # Pillow gives the comment the type BYTE, and other readers insist on the standard's UNDEFINED.
    # The letters before it, JSON in ASCII, cannot look like its tag.
    before, after = (struct.pack(">HH", USER_COMMENT, kind) for kind in (BYTE, UNDEFINED))
    return exif.tobytes().replace(before, after, 1)


def _encodable(text: str) -> str:
    # Python represents invalid UTF-8 on the command line as lone surrogates.
    return text.encode("utf-8", "replace").decode("utf-8")
