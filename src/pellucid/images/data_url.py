"""Pictures as data: URLs, which hold them whole, for pages and JSON."""

from __future__ import annotations

import base64
import io

from PIL import Image

from pellucid.plugins import choose

KINDS = ("PNG", "WEBP", "JPEG")
PNG_URL = "data:image/png;base64,"


def to_data_url(image: Image.Image, kind: str = "PNG", quality: int = 85) -> str:
    """A picture as a URL that holds it. kind: PNG; WEBP or JPEG, of this quality, are smaller."""
    choose(kind, KINDS, "kind of picture")
    file = io.BytesIO()
    image.save(file, kind, optimize=True, quality=quality)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def data_of(url: str) -> bytes:
    """The bytes of the file in a data: URL of a picture. ValueError: it is none, or not in base64."""
    head, _, text = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        raise ValueError("a picture must be a data: URL in base64")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:  # binascii's is one
        raise ValueError("the picture is not base64") from None


def from_data_url(url: str) -> Image.Image:
    """The picture in a URL that `to_data_url` made as PNG. ValueError for anything else."""
    if not url.startswith(PNG_URL):
        raise ValueError(f"a picture must be a URL that begins with {PNG_URL}")
    try:
        image = Image.open(io.BytesIO(data_of(url)), formats=("PNG",))
        image.load()
    except Exception as error:  # a decoder can raise anything on malformed data
        raise ValueError(f"the picture cannot be read: {error}") from error
    return image
