"""Pictures as text, for a terminal with 24-bit colour."""

from __future__ import annotations

import numpy as np
from PIL import Image


def draw_in_terminal(image: Image.Image, width: int = 64) -> str:
    """A picture as text, `width` characters wide, for a terminal with 24-bit colour.

    Each character is an upper half block: its foreground is one pixel, its background the one below.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    height = max(2, 2 * round(image.height * width / image.width / 2))
    pixels = np.array(image.convert("RGB").resize((width, height), Image.Resampling.BOX))
    lines = [
        "".join(
            "\x1b[38;2;{};{};{};48;2;{};{};{}m▀".format(*upper, *lower)
            for upper, lower in zip(top, bottom, strict=True)
        )
        for top, bottom in zip(pixels[0::2], pixels[1::2], strict=True)
    ]
    return "".join(f"{line}\x1b[0m\n" for line in lines)
