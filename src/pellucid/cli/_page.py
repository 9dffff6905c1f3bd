"""What the commands that make pages share: where the page goes, and how it is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pellucid.html.records import Record

OUT_HELP = "The page, a .html file; outputs/PICTURE-COMMAND.html if left out."
JSON_HELP = "The record as JSON on stdout; a page only if --out asks for one."


def page_path(out: Path | None, as_json: bool, picture: Path, command: str) -> Path | None:
    """Where the page goes, or None if none is wanted. ValueError: no .html, a folder of that name.

    A page of the same picture by the same command is written over: it is made again while playing.
    """
    if out is None:
        return None if as_json else Path("outputs") / f"{picture.stem}-{command}.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out is {out}; a file that ends in .html is wanted")
    if out.is_dir():  # said now, not after the work is done
        raise ValueError(f"--out is {out}, which is a folder; a file is wanted")
    return out


def deliver(record: Record, html: Callable[[], str], path: Path | None, as_json: bool) -> None:
    """Write the page and tell where it is; or tell the whole record."""
    from pellucid.html import pages

    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pages.write(path, html())
        if not as_json:
            typer.echo(path)
    if as_json:
        typer.echo(record.model_dump_json(indent=1))
