"""Pictures in rows and columns with their names, for a page and as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image, ImageDraw, ImageFont

from pellucid.images.data_url import to_data_url

HEAD, NAME, GAP = 18, 130, 3  # height of the head, width of the names, room between, in pixels


@dataclass(frozen=True)
class Gallery:
    """A table of pictures. rows: the name of each and its pictures, one below each column's name.

    width: of one picture as it is shown; it is made larger without smoothing, so that one sees its
    pixels. kind: how the page holds the pictures, as in `to_data_url`.
    Raises ValueError: no picture at all, rows of unequal length.
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
                f"<td>{self._img(picture, f'{name} {column}'.strip())}</td>"
                for picture, column in zip(pictures, self.columns, strict=True)
            )
            lines.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
        return f'<div class="scroll"><table class="gallery">{"".join(lines)}</table></div>'

    def _img(self, picture: Image.Image, words: str) -> str:
        width, height = self._shown(picture)
        source = to_data_url(picture, self.kind, quality=90)
        return f'<img src="{source}" width="{width}" height="{height}" alt="{escape(words)}">'

    def _shown(self, picture: Image.Image) -> tuple[int, int]:
        return self.width, max(1, round(picture.height * self.width / picture.width))

    def image(self) -> Image.Image:
        """The same on white."""
        font = ImageFont.load_default(11)
        names = NAME if any(name for name, _ in self.rows) else 0
        heights = [max(self._shown(p)[1] for p in pictures) + GAP for _, pictures in self.rows]
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
                shown = picture.convert("RGB").resize(
                    self._shown(picture), Image.Resampling.NEAREST
                )
                sheet.paste(shown, (names + j * step, top))
            top += height
        return sheet


def beside(parts: Sequence[Image.Image]) -> Image.Image:
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
