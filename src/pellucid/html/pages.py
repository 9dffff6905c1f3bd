"""Pages that open in any browser: one HTML file with its pictures and plots inside.

A page loads nothing else: its pictures are data: URLs, its plots SVG, its style is inline, and its
content security policy forbids everything more: no script runs but the page's own, which is named by
its hash. Every function here returns HTML. Text is escaped; arguments named `content`, `body` or
`heads` are HTML already.
"""

from __future__ import annotations

import base64
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from pellucid.files import write_text
from pellucid.html import bundles, plots
from pellucid.html.numbers import people
from pellucid.images.data_url import to_data_url


def page(title: str, *body: str, script: str = "", style: str = "", data: object = None) -> str:
    """A whole HTML document.

    script: JavaScript that runs at its end, and the only one that may. style: additional CSS.
    data: JSON for the script, in the element `#record`.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<link rel="icon" href="data:,"><title>{escape(title)}</title>',
            f"<style>{bundles.read('html/style.css')}{plots.CSS}{style}</style></head>",
            f"<body><h1>{escape(title)}</h1>",
            *body,
            *([] if data is None else [embedded(data)]),
            *([f"<script>{script}</script>"] if script else []),
            "</body></html>\n",
        ]
    )


def embedded(data: object) -> str:
    """JSON for the scripts of a page. No text in it can end the element or begin another."""
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="record">{text}</script>'


def lively(script: str = "lively();", folder: str = "html/modules") -> str:
    """The script of a page whose plots and tables answer. script: a module that calls `lively`
    itself, with its controls; folder: what its imports are relative to."""
    if folder == "html/modules":
        script = f'import {{ lively }} from "./lively.js";\n{script}\n'
    return bundles.bundle(script, folder)


def control(name: str) -> str:
    """A panel that the page's script fills with the control of this name."""
    return f'<div class="panel" data-control="{name}"></div>'


def section(heading: str, *content: str) -> str:
    """A heading of the second level and its content."""
    return f"<section><h2>{escape(heading)}</h2>\n" + "\n".join(content) + "</section>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def source(file: str, equation: str) -> str:
    """An equation, and the source file that implements it."""
    return f"<p><code>{escape(equation)}</code> &emsp; <small>{escape(file)}</small></p>"


def row(*content: str, name: str = "") -> str:
    """Figures side by side, wrapped to the width of the window. name: a class, for scripts."""
    return f'<div class="{f"row {name}".strip()}">{"".join(content)}</div>'


def figure(content: str, caption: str = "") -> str:
    """A plot or other HTML with a caption below it."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{content}{below}</figure>"


def picture(image: Image.Image, caption: str, width: int | None = None, kind: str = "PNG") -> str:
    """A picture with a caption below it, shown `width` pixels wide (None: its own width)."""
    return figure(img(image, caption, image.width if width is None else width, kind), caption)


def img(image: Image.Image, alt: str, width: int, kind: str = "PNG", quality: int = 85) -> str:
    """A picture alone, shown `width` pixels wide. kind, quality: as in `to_data_url`."""
    url, height = to_data_url(image, kind, quality), shown_height(image, width)
    return f'<img src="{url}" width="{width}" height="{height}" alt="{escape(alt)}">'


def shown_height(image: Image.Image, width: int) -> int:
    """The height of a picture that is shown `width` pixels wide."""
    return max(1, round(image.height * width / image.width))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows under a head; numbers as `people` writes them. Text that does not begin with a
    digit is aligned left.

    Raises ValueError for a row that is not as long as the head.
    """
    texts = [_is_text(value) for value in rows[0]] if rows else [True] * len(head)
    lines = [_line("th", head, texts)]
    lines += [_line("td", [_cell(value) for value in line], texts) for line in rows]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not value.startswith((*"0123456789-∞",))


def _line(tag: str, cells: Sequence[str], texts: Sequence[bool]) -> str:
    open_tags = [f'<{tag} class="text">' if text else f"<{tag}>" for text in texts]
    pairs = zip(open_tags, cells, strict=True)
    return "<tr>" + "".join(f"{start}{escape(cell)}</{tag}>" for start, cell in pairs) + "</tr>"


def _cell(value: object) -> str:
    return people(value) if isinstance(value, int | float) else str(value)


def matrix(heads: Sequence[str], values: Sequence[Sequence[float]]) -> str:
    """A square table; the larger a number, the stronger its colour, the diagonal aside."""
    others = [value for i, line in enumerate(values) for j, value in enumerate(line) if i != j]
    low, high = (min(others), max(others)) if others else (0.0, 1.0)
    span = max(high - low, 1e-9)

    def cell(value: float) -> str:
        depth = 0.7 * min(max((value - low) / span, 0.0), 1.0)
        return (
            f'<td style="background:rgba(0,128,200,{depth:.2f})">{round(value, 2) + 0.0:.2f}</td>'
        )

    lines = ["<tr><th></th>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    for head, line in zip(heads, values, strict=True):
        lines.append(f"<tr><th>{head}</th>{''.join(map(cell, line))}</tr>")
    return f'<div class="scroll"><table class="matrix">{"".join(lines)}</table></div>'


def source_code(function: Callable[..., object]) -> str:
    """The source of a function and its location, folded up. A method begins at the margin."""
    lines, number = inspect.getsourcelines(function)
    file = function.__module__.replace(".", "/") + ".py"
    return (
        f"<details class='source'><summary>Source: <code>{file}</code>, "
        f"<code>{function.__qualname__}</code>, line {number}</summary>"
        f"<pre tabindex='0'><code>{escape(textwrap.dedent(''.join(lines)))}</code></pre></details>"
    )


def write(path: str | Path, text: str, replace: bool = True) -> None:
    """Write a page. It appears whole or not at all; ValueError: no such folder, a full disk.

    replace: as in `files.new_file`.
    """
    write_text(path, text, replace)
