"""The layout of the documentation's figures: sheets, plots, and numbers as colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pellucid.html.plots import LIGHT, Plot, Series
from pellucid.images.pixels import grid, to_pil

SIDE = 128  # pixels of one picture in a sheet
TEXT = 19  # pixels of the letters below it


class Cell(NamedTuple):
    """A picture in a sheet and its label."""

    image: Image.Image
    label: str = ""


def sheet(cells: Sequence[Cell], columns: int, side: int = SIDE) -> Image.Image:
    """Pictures in rows, each `side` pixels wide and high with its label below."""
    font = ImageFont.load_default(TEXT)
    frames = []
    for cell in cells:
        frame = Image.new("RGB", (side, side + (TEXT + 10 if cell.label else 0)), "white")
        frame.paste(cell.image.resize((side, side), Image.Resampling.NEAREST))
        brush = ImageDraw.Draw(frame)
        brush.rectangle((0, 0, side - 1, side - 1), outline="#c8c8c8")  # the edge of white pictures
        brush.text((side / 2, side + 4), cell.label, fill="black", font=font, anchor="ma")
        frames.append(frame)
    return grid(frames, columns, gap=8)


def plot(title: str, series: Sequence[Series], x: str, y: str, **axes: Any) -> Image.Image:
    """A plot; `axes` are further fields of `Plot`."""
    return Plot(title, series, x, y, **axes).image(scale=3)


def heat(values: Tensor) -> Image.Image:
    """(H, W), white at the minimum, blue at the maximum."""
    low, high = values.min(), values.max()
    share = ((values - low) / (high - low).clamp(min=1e-12))[None]
    ink = torch.tensor([int(LIGHT[0][i : i + 2], 16) / 127.5 - 1 for i in (1, 3, 5)])
    return to_pil(1 + share * (ink[:, None, None] - 1))


def dots(points: Tensor) -> Image.Image:
    """(N, 2), both between -3 and 3, as a picture."""
    picture = Image.new("RGB", (SIDE, SIDE), "#f2f2f2")
    brush = ImageDraw.Draw(picture)
    for x, y in ((points + 3) / 6 * SIDE).tolist():
        brush.ellipse((x - 1, y - 1, x + 1, y + 1), fill=LIGHT[0])
    return picture


def grey(values: Tensor) -> Image.Image:
    """(H, W), black at -3 and white at 3 deviations of a unit normal."""
    return to_pil((values / 3).expand(3, -1, -1))


def matrix(scores: Tensor, rows: Sequence[str], columns: Sequence[Image.Image]) -> Image.Image:
    """Numbers (rows, columns) on blue, higher is bluer, labels at the left, pictures on top."""
    font, left = ImageFont.load_default(TEXT), 200
    canvas = Image.new("RGB", (left + SIDE * len(columns), SIDE + 64 * len(rows)), "white")
    brush = ImageDraw.Draw(canvas)
    for i, picture in enumerate(columns):
        canvas.paste(picture.resize((SIDE - 8, SIDE - 8)), (left + SIDE * i + 4, 4))
    canvas.paste(
        heat(scores).resize((SIDE * len(columns), 64 * len(rows)), Image.Resampling.NEAREST),
        (left, SIDE),
    )
    for i, (label, line) in enumerate(zip(rows, scores, strict=True)):
        y = SIDE + 64 * i + 32
        brush.text((left - 10, y), label, fill="black", font=font, anchor="rm")
        for j, score in enumerate(line):
            ink = "white" if score > scores.max() / 2 else "black"
            brush.text(
                (left + SIDE * j + SIDE / 2, y),
                f"{score:.2f}",
                fill=ink,
                font=font,
                anchor="mm",
            )
    return canvas
