"""What the commands that explain a picture share: where the page goes, and how it is reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pellucid.cli._app import show_json, show_path

if TYPE_CHECKING:
    from pellucid.html.records import Record

OUT_HELP = "The page, an .html file; default: outputs/PICTURE-COMMAND.html."
JSON_HELP = "The record as JSON on stdout; a page only with --out."

Picture = Annotated[Path, typer.Argument(help="Any picture.")]
Out = Annotated[Path | None, typer.Option(help=OUT_HELP)]
AsJson = Annotated[bool, typer.Option("--json", help=JSON_HELP)]


def page_path(out: Path | None, as_json: bool, picture: Path, command: str) -> Path | None:
    """Where the page goes; None: no page. ValueError: not .html, or a folder of that name.

    A page of the same picture by the same command is overwritten, so that it can be repeated.
    """
    if out is None:
        return None if as_json else Path("outputs") / f"{picture.stem}-{command}.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out must be a file that ends in .html, got {out}")
    if out.is_dir():  # checked before the work is done
        raise ValueError(f"--out must be a file that ends in .html, but {out} is a folder")
    return out


def deliver(record: Record, html: Callable[[], str], path: Path | None, as_json: bool) -> None:
    """Write the page and print its path, or print the record as JSON."""
    from pellucid.html import pages

    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pages.write(path, html())
        if not as_json:
            show_path(path)
    if as_json:
        show_json(record.model_dump_json(indent=1))
