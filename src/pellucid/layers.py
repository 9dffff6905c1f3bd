"""A picture put together from things that were drawn by themselves.

Each is cut out of its region of the canvas and put on the ground, as layers of a collage are: smaller
or larger than another, in front of it or behind it. Models that draw layers with their transparency do
so with a trained decoder (Zhang and Agrawala 2024, "Transparent Image Layer Diffusion using Latent
Transparency", arXiv:2402.17113); here the white on which a small model draws is the key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, combinations, pairwise
from typing import NamedTuple

from PIL import Image

from pellucid.arrangement import Layout, Region
from pellucid.images.matte import cut_out

FILLED = 0.94
"""How much of the picture things may fill, across and down, where they are not as on the canvas."""
GAP = 0.03
"""Between two of them, as a part of the picture's side."""
IN_LINE = 4
"""As many things of different sizes stand in a line."""


class Layer(NamedTuple):
    """A thing, RGBA, and the pixel at which its left upper corner is."""

    picture: Image.Image
    left: float
    top: float

    @property
    def right(self) -> float:
        return self.left + self.picture.width

    @property
    def bottom(self) -> float:
        return self.top + self.picture.height


def composed(canvas: Image.Image, regions: Sequence[Region], layout: Layout) -> Image.Image:
    """The canvas of the regions as the picture that the layout asks for, of the same size."""
    ground = Image.new("RGBA", canvas.size, (*(layout.ground or (255, 255, 255)), 255))
    boxes = [_pixels(region, canvas.size) for region in regions]
    layers = [_bare(Layer(cut_out(canvas.crop(box)), box[0], box[1])) for box in boxes]
    if layout.meeting is not None:
        layers = _meeting(layers, layout, canvas.size)
    elif layout.moves and len(layers) <= IN_LINE:
        layers = _in_line(layers, regions, layout.sizes, canvas.size)
    elif layout.moves:
        layers = _in_rows(layers, layout.sizes, canvas.size)
    for layer in layers:
        ground.alpha_composite(layer.picture, (round(layer.left), round(layer.top)))
    return ground.convert("RGB")


def _meeting(layers: Sequence[Layer], layout: Layout, size: tuple[int, int]) -> list[Layer]:
    """Two things that touch, the one that is in front last, as large as the picture allows."""
    meeting = layout.meeting
    assert meeting is not None
    sizes = [a * b for a, b in zip(layout.sizes, meeting.sizes, strict=True)]
    wide = [layer.picture.width * own for layer, own in zip(layers, sizes, strict=True)]
    high = [layer.picture.height * own for layer, own in zip(layers, sizes, strict=True)]
    (x0, y0), (x1, y1) = meeting.first, meeting.second
    left, top = (0.0, x0 * wide[0] - x1 * wide[1]), (0.0, y0 * high[0] - y1 * high[1])
    right = max(a + b for a, b in zip(left, wide, strict=True))
    bottom = max(a + b for a, b in zip(top, high, strict=True))
    scale = FILLED * min(size[0] / (right - min(left)), size[1] / (bottom - min(top)))
    scale *= min(max(layout.sizes), 1)
    across = (size[0] - scale * (right + min(left))) / 2
    down = (size[1] - scale * (bottom + min(top))) / 2
    put = [
        Layer(_resized(layer.picture, scale * own), across + scale * x, down + scale * y)
        for layer, own, x, y in zip(layers, sizes, left, top, strict=True)
    ]
    return put if meeting.front == 1 else put[::-1]


def _in_line(
    layers: Sequence[Layer],
    regions: Sequence[Region],
    sizes: Sequence[float],
    size: tuple[int, int],
) -> list[Layer]:
    """A few things on one line from left to right, or from top to bottom, as large as they fit."""
    stacked = len({region.left for region in regions}) == 1
    places = [(region.top, region.left) for region in regions]
    order = sorted(range(len(layers)), key=lambda i: places[i])
    wide = [layer.picture.width * own for layer, own in zip(layers, sizes, strict=True)]
    high = [layer.picture.height * own for layer, own in zip(layers, sizes, strict=True)]
    along, across = (high, wide) if stacked else (wide, high)
    length, breadth = size[::-1] if stacked else size
    gap = GAP * length
    taken = gap * (len(layers) - 1)
    scale = min((FILLED * length - taken) / sum(along), FILLED * breadth / max(across))
    scale *= min(max(sizes), 1)
    at = (length - taken - scale * sum(along)) / 2
    line = (breadth + scale * max(across)) / 2  # on which all stand
    found = []
    for i in order:
        picture = _resized(layers[i].picture, scale * sizes[i])
        if stacked:
            found.append(Layer(picture, (breadth - picture.width) / 2, at))
        else:
            found.append(Layer(picture, at, line - picture.height))
        at += scale * along[i] + gap
    return found


def _in_rows(layers: Sequence[Layer], sizes: Sequence[float], size: tuple[int, int]) -> list[Layer]:
    """Many things in rows, all of a row on one line; in the rows in which they are largest."""
    wide = [layer.picture.width * own for layer, own in zip(layers, sizes, strict=True)]
    high = [layer.picture.height * own for layer, own in zip(layers, sizes, strict=True)]
    gap = GAP * min(size)

    def scale(rows: Sequence[Sequence[int]]) -> float:
        across = [
            (size[0] * FILLED - gap * (len(row) - 1)) / sum(wide[i] for i in row) for row in rows
        ]
        down = sum(max(high[i] for i in row) for row in rows)
        return min(*across, (size[1] * FILLED - gap * (len(rows) - 1)) / down)

    rows = max(_rows(len(layers)), key=scale)
    own = scale(rows) * min(max(sizes), 1)
    down = own * sum(max(high[i] for i in row) for row in rows) + gap * (len(rows) - 1)
    line = (size[1] - down) / 2 - gap
    found = []
    for row in rows:
        line += gap + own * max(high[i] for i in row)
        left = (size[0] - own * sum(wide[i] for i in row) - gap * (len(row) - 1)) / 2
        for i in row:
            picture = _resized(layers[i].picture, own * sizes[i])
            found.append(Layer(picture, left, line - picture.height))
            left += own * wide[i] + gap
    return found


def _rows(count: int) -> Iterator[list[range]]:
    """All ways to break so many things into rows, in their order."""
    for breaks in chain.from_iterable(combinations(range(1, count), n) for n in range(count)):
        yield [range(a, b) for a, b in pairwise((0, *breaks, count))]


def _bare(layer: Layer) -> Layer:
    """One without the transparent rows and columns around what is seen."""
    box = layer.picture.getbbox() or (0, 0, *layer.picture.size)
    return Layer(layer.picture.crop(box), layer.left + box[0], layer.top + box[1])


def _resized(picture: Image.Image, scale: float) -> Image.Image:
    size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    # Premultiplied, so that what is transparent does not bleed into the edges.
    return picture.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")


def _pixels(region: Region, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a region."""
    left, top = round(region.left * size[0]), round(region.top * size[1])
    return (
        left,
        top,
        left + round(region.width * size[0]),
        top + round(region.height * size[1]),
    )
