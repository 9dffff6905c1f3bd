"""What a picture shows on white, without the white.

A matte by the known colour of the ground (Smith and Blinn 1996, "Blue Screen Matting", equation 1: a
pixel is alpha F + (1 - alpha) B). What they have to assume of the thing's colour F is taken from its
neighbourhood.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

WHITE = 0.04
"""What differs from white by less, of 1, may be ground."""
SHADE = (0.06, 0.2)
"""From here to there a pixel near to the ground may be a shade of it: the paler, the more."""
EDGE, FRINGE = 2 / 256, 6 / 256
"""How wide the edge of a thing and such a shade are, as parts of the picture."""


def cut_out(picture: Image.Image) -> Image.Image:
    """What a picture shows on white, RGBA: without the ground, which is transparent."""
    pixels = np.asarray(picture.convert("RGB"), np.float32) / 255
    alpha = matte(pixels)[..., None]
    own = (pixels - (1 - alpha)) / np.maximum(alpha, 1e-3)
    found = np.concatenate([own.clip(0, 1), alpha], axis=-1)
    return Image.fromarray((found * 255).round().astype(np.uint8))


def matte(pixels: np.ndarray) -> np.ndarray:
    """How much of each pixel belongs to what is shown on white, 0 to 1. pixels: (h, w, 3), 0 to 1.

    The ground is what is nearly white and connected with the border: a white eye inside of a face is
    none.
    """
    distance = 1 - np.minimum.reduce([pixels[..., channel] for channel in range(3)])
    ground = from_border(distance < WHITE)
    edge, fringe = (max(round(min(ground.shape) * part), 1) for part in (EDGE, FRINGE))
    faint = ground
    for _ in range(fringe):
        faint = faint | (spread(faint, 1) & (distance < SHADE[1]))
    ground = ground | (faint & (distance < SHADE[0]))
    # At its edge a thing is mixed with the ground; its own colour is where it is the least white.
    own = highest(np.where(ground, 0, distance), edge)
    alpha = np.where(spread(ground, edge), distance / np.maximum(own, 1e-6), 1.0)
    shade = (distance - SHADE[0]) / (SHADE[1] - SHADE[0])
    alpha = np.where(faint, np.minimum(alpha, shade), alpha)
    return np.where(ground, 0.0, alpha.clip(0, 1)).astype(np.float32)


def from_border(where: np.ndarray) -> np.ndarray:
    """The part of a mask (h, w) that is connected with the border, by sides."""
    found = np.zeros_like(where)
    for side in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        found[side] = where[side]
    masks = [where, np.ascontiguousarray(where.T)]
    count = 0
    while count != (count := int(found.sum())):
        for mask in masks:  # down and up, then the same of the columns
            found = found | _swept(found, mask)
            found = np.ascontiguousarray((found | _swept(found[::-1], mask[::-1])[::-1]).T)
    return found


def _swept(found: np.ndarray, where: np.ndarray) -> np.ndarray:
    """What is reached from the found pixels downwards, inside of the mask."""
    row = np.arange(len(found), dtype=np.int16)[:, None]
    reached = np.maximum.accumulate(np.where(found, row, np.int16(-1)))
    wall = np.maximum.accumulate(np.where(where, np.int16(-1), row))
    return reached > wall


def spread(where: np.ndarray, by: int) -> np.ndarray:
    """A mask with all pixels that are at most so many steps away from it, by sides."""
    for _ in range(by):
        wider = where.copy()
        wider[1:] |= where[:-1]
        wider[:-1] |= where[1:]
        wider[:, 1:] |= where[:, :-1]
        wider[:, :-1] |= where[:, 1:]
        where = wider
    return where


def highest(values: np.ndarray, by: int) -> np.ndarray:
    """The highest of the values (h, w) at most `by` pixels away, across and down."""
    height, width = values.shape
    around = np.pad(values, by)
    rows = np.maximum.reduce([around[i : i + height] for i in range(2 * by + 1)])
    return np.maximum.reduce([rows[:, i : i + width] for i in range(2 * by + 1)])
