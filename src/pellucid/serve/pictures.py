"""The store of pictures: each file is named by the SHA-256 of its bytes, whoever it came from."""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from pellucid.files import new_file
from pellucid.images.load import open_header, open_image
from pellucid.images.metadata import FORMATS, format_of

DECODERS = 2
"""Pictures of clients that are decoded at once, which bounds the memory."""
NAME = re.compile("[0-9a-f]{64}")
MEDIA = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "GIF": "image/gif",
    "TIFF": "image/tiff",
    "BMP": "image/bmp",
}


class PictureStore:
    """The pictures in a folder. Safe to use from several processes.

    A file is on the disk when a method returns its name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._decoding = threading.Semaphore(DECODERS)
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path | None:
        """The file of a picture; None: there is none of this name, whatever it is."""
        if not NAME.fullmatch(name):
            return None
        path = self._path(name)
        return path if path.is_file() else None

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name

    def add(self, data: bytes) -> str:
        """Store the bytes of a picture; its name."""
        name = hashlib.sha256(data).hexdigest()
        path = self._path(name)
        if not _holds(path, data):
            path.parent.mkdir(exist_ok=True)
            with new_file(path) as temporary:
                temporary.write_bytes(data)
        # All at the end: most file systems then wait for the disk once, and not for every name.
        _sync(path)
        with suppress(OSError):  # Windows cannot open folders
            _sync(path.parent)
            _sync(self.folder)
        return name

    def add_upload(self, data: bytes, pixel_limit: int) -> tuple[str, tuple[int, int]]:
        """Store a picture that a client has sent; its name, its width and height.

        ValueError: no picture, damaged, more than `pixel_limit` pixels (checked before it is
        decoded).
        """
        header, _ = open_header(io.BytesIO(data))
        with header:
            width, height = header.size
        if width * height > pixel_limit:
            raise ValueError(
                f"the picture must have at most {pixel_limit:,} pixels, got {width}x{height}"
            )
        with self._decoding:
            decoded = open_image(io.BytesIO(data))
        return self.add(data), decoded.size

    def add_image(self, image: Image.Image, record: Mapping[str, Any], kind: str = "png") -> str:
        """Store a picture with what made it inside; its name."""
        return self.add(encoded(image, kind, record))

    def sweep(self, used: Collection[str], seconds: float) -> int:
        """Delete the pictures that are not in `used` and were stored more than so many seconds ago; how
        many."""
        limit, count = time.time() - seconds, 0
        for path in self.folder.glob("??/*"):
            if NAME.fullmatch(path.name) and path.name not in used:
                with suppress(OSError):
                    if path.stat().st_mtime < limit:
                        path.unlink()
                        count += 1
        return count

    def remove(self, name: str) -> None:
        """Delete a picture, if it is there."""
        path = self.path(name)
        if path is not None:
            with suppress(OSError):
                path.unlink()


def encoded(
    image: Image.Image,
    kind: str = "png",
    record: Mapping[str, Any] | None = None,
    quality: int | None = None,
) -> bytes:
    """A picture as the bytes of a file. kind: png, jpeg or webp. quality: 0 to 100, of the last two."""
    suffix = f".{kind}"
    if suffix not in FORMATS:
        raise ValueError(f"format must be one of png, jpeg, webp, got {kind!r}")
    form, options = format_of(Path(f"picture{suffix}"), record)
    if quality is not None and form != "PNG":
        options |= {"quality": quality, "lossless": False}
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def media_type(path: Path) -> str:
    """The media type of a stored picture."""
    with Image.open(path) as image:
        return MEDIA.get(str(image.format), "application/octet-stream")


def _holds(path: Path, data: bytes) -> bool:
    """Whether a file has these bytes; after a power failure one may be there without them."""
    try:
        return path.read_bytes() == data
    except OSError:
        return False


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
