"""Pictures in rows and columns with their names, as HTML and as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image, ImageDraw, ImageFont

from pellucid.html.pages import img, shown_height

HEAD, NAME, GAP = 18, 130, 3  # height of the head, width of the names, gaps, in pixels


@dataclass(frozen=True)
class Gallery:
    """A table of pictures. rows: the name of each and its pictures, one below each column's name.

    width: of one picture as shown; enlarging does not smooth, so that pixels stay visible. kind: as
    in `to_data_url`. Raises ValueError: no picture at all, rows of unequal length.
    """

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Image.Image]]]
    width: int = 96
    kind: str = "PNG"

    def __post_init__(self) -> None:
        if not self.columns or not self.rows:
            raise ValueError("a gallery needs at least one row and one column")
        for name, pictures in self.rows:
            if len(pictures) != len(self.columns):
                raise ValueError(
                    f"the row {name!r} has {len(pictures)} pictures for {len(self.columns)} columns"
                )

    def html(self) -> str:
        """A <table>."""
        head = "".join(f"<th>{escape(name)}</th>" for name in ("", *self.columns))
        lines = [f"<tr>{head}</tr>"]
        for name, pictures in self.rows:
            cells = "".join(
                f"<td>{img(picture, f'{name} {column}'.strip(), self.width, self.kind, 90)}</td>"
                for picture, column in zip(pictures, self.columns, strict=True)
            )
            lines.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
        return f'<div class="scroll"><table class="gallery">{"".join(lines)}</table></div>'

    def image(self) -> Image.Image:
        """The table as one picture, on white."""
        font = ImageFont.load_default(11)
        names = NAME if any(name for name, _ in self.rows) else 0
        heights = [
            max(shown_height(p, self.width) for p in pictures) + GAP for _, pictures in self.rows
        ]
        step = self.width + GAP
        size = (names + step * len(self.columns), HEAD + sum(heights))
        sheet = Image.new("RGB", size, "white")
        brush = ImageDraw.Draw(sheet)
        for j, column in enumerate(self.columns):
            middle = (names + j * step + self.width / 2, HEAD - 5)
            brush.text(middle, column, "black", font, anchor="ms")
        top = HEAD
        for (name, pictures), height in zip(self.rows, heights, strict=True):
            brush.text((names - 6, top + height / 2), name, "black", font, anchor="rm")
            for j, picture in enumerate(pictures):
                size = (self.width, shown_height(picture, self.width))
                scaled = picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
                sheet.paste(scaled, (names + j * step, top))
            top += height
        return sheet


def side_by_side(parts: Sequence[Image.Image]) -> Image.Image:
    """Pictures of any size side by side, on white."""
    size = (sum(part.width for part in parts), max(part.height for part in parts))
    sheet = Image.new("RGB", size, "white")
    left = 0
    for part in parts:
        sheet.paste(part, (left, 0))
        left += part.width
    return sheet


def stack(parts: Sequence[Image.Image], gap: int = 16) -> Image.Image:
    """Pictures of any size below one another, on white."""
    width = max(part.width for part in parts) + 2 * gap
    sheet = Image.new("RGB", (width, sum(p.height + gap for p in parts) + gap), "white")
    top = gap
    for part in parts:
        sheet.paste(part, (gap, top))
        top += part.height + gap
    return sheet
