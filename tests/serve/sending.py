"""What the tests of the server share. Its name is not that of another conftest.py."""

from __future__ import annotations

import io

from PIL import Image

LONG = 120.0
"""Seconds that no test should need; a busy machine is slow."""


def png(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
