"""A table of pictures with labels: a setting changes along each of its two sides."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

GAP = 4
LARGEST = 8192  # pixels of the table on a side; the pictures are made smaller for it
LABEL = 24  # letters of a label at the left in one line
SMALLEST = 160  # pixels of a cell
SMALLEST_FONT, LARGEST_FONT = 12, 40


def table(
    cells: Sequence[Sequence[Image.Image | str]], columns: Sequence[str], rows: Sequence[str]
) -> Image.Image:
    """Rows of cells, each a picture or a text in its place; columns, rows: their labels.

    All cells have the size of the largest picture, and are enlarged if that leaves no room for
    letters. A label "" takes no room.
    """
    drawn = [cell for row in cells for cell in row if not isinstance(cell, str)]
    width = max((picture.width for picture in drawn), default=128)
    height = max((picture.height for picture in drawn), default=128)
    least = min(
        max(1.0, -(-SMALLEST // max(width, height))),
        LARGEST / (len(columns) * (width + GAP)),
        LARGEST / (len(rows) * (height + GAP)),
    )
    width, height = max(int(width * least), 1), max(int(height * least), 1)
    size = min(max(height // 12, SMALLEST_FONT), LARGEST_FONT)
    font = ImageFont.load_default(size)
    wrapped = [textwrap.fill(row, LABEL) for row in rows]
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    boxes = [measure.multiline_textbbox((0, 0), label, font) for label in wrapped if label]
    left = max((int(box[2]) for box in boxes), default=-2 * GAP) + 2 * GAP
    letters = max(int(width / (0.6 * size)), 1)
    heads = [textwrap.fill(column, letters) for column in columns]
    boxes = [measure.multiline_textbbox((0, 0), head, font) for head in heads if head]
    top = max((int(box[3]) for box in boxes), default=-2 * GAP) + 2 * GAP
    sheet = Image.new(
        "RGB",
        (left + len(columns) * (width + GAP) + GAP, top + len(rows) * (height + GAP) + GAP),
        "white",
    )
    pen = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        at = left + GAP + column * (width + GAP)
        pen.multiline_text((at, GAP), head, "black", font)
    for row, label in enumerate(wrapped):
        pen.multiline_text((GAP, top + GAP + row * (height + GAP)), label, "black", font)
        for column, cell in enumerate(cells[row]):
            place = (left + GAP + column * (width + GAP), top + GAP + row * (height + GAP))
            if isinstance(cell, str):
                box = (*place, place[0] + width - 1, place[1] + height - 1)
                pen.rectangle(box, "#eeeeee")
                sheet.paste(_note(cell, width, height), place)
            else:
                filter = Image.Resampling.NEAREST if least > 1 else Image.Resampling.LANCZOS
                small = cell.resize((width, height), filter)
                sheet.paste(small.convert("RGB"), place)
    return sheet


def _note(text: str, width: int, height: int) -> Image.Image:
    """A text that is as large as a cell has room for."""
    note = Image.new("RGB", (width, height), "#eeeeee")
    size = min(max(height // 16, 9), 24)
    letters = max(int((width - 2 * GAP) / (0.55 * size)), 1)
    font = ImageFont.load_default(size)
    lines = textwrap.fill(text, letters, break_on_hyphens=False)
    ImageDraw.Draw(note).multiline_text((GAP, GAP), lines, "#990000", font)
    return note
