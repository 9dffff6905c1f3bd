"""Pixels: a picture as a tensor (3, H, W) in [-1, 1] and back, scaled, and several in a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def to_tensor(image: Image.Image) -> Tensor:
    """A picture as (3, H, W) float32 in [-1, 1]."""
    pixels = np.array(image.convert("RGB"))  # (H, W, 3) uint8, a copy
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div(127.5).sub(1)


def to_pil(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] as a picture; values outside are clamped.

    Raises ValueError if a value is not finite, which would become a black picture.
    """
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(f"pixels must be (3, height, width), got {tuple(pixels.shape)}")
    pixels = pixels.detach().float().cpu()
    if not pixels.isfinite().all():
        raise ValueError("pixels has values that are not finite; the network overflowed")
    levels = pixels.clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.permute(1, 2, 0).numpy()))


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of a picture, scaled so that it fills width x height."""
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def grid(
    images: Sequence[Image.Image],
    columns: int | None = None,
    gap: int = 2,
    background: str = "white",
) -> Image.Image:
    """Pictures in rows from left to right; None makes it about square."""
    if not images:
        raise ValueError("images is empty; at least one picture is needed")
    if columns is None:
        columns = math.ceil(math.sqrt(len(images)))
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    width = max(image.width for image in images)
    height = max(image.height for image in images)
    sheet = Image.new(
        "RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), background
    )
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(image, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet
