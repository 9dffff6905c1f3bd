"""Pictures in rows and columns with their names, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from pellucid.html.pages import img


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
