"""What the commands that explain a picture share: where the page goes, and how it is reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pellucid.cli._app import show_json, show_path
from pellucid.cli._files import OUTPUTS, OVERWRITE, Output
from pellucid.progress import stage

if TYPE_CHECKING:
    from pellucid.html.records import Record

Picture = Annotated[Path, typer.Argument(help="Any picture.")]
Out = Annotated[
    str | None,
    typer.Option(help=f"A folder, or the page, a .html file. Default: the folder {OUTPUTS}."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help=OVERWRITE)]
AsJson = Annotated[
    bool, typer.Option("--json", help="The record as JSON on stdout; a page only with --out.")
]


def page_output(out: str | None, as_json: bool, overwrite: bool) -> Output | None:
    """Where the page goes, checked before the work; None: no page. Errors as in `Output.of`."""
    if out is None and as_json:
        return None
    return Output.of_page(out, overwrite)


def deliver(
    record: Record, html: Callable[[], str], output: Output | None, stem: str, as_json: bool
) -> None:
    """Write the page and print its path, or print the record as JSON."""
    if output is not None:
        with stage("making the page"):
            text = html()
        path = output.save_page(text, stem)
        if not as_json:
            show_path(path)
    if as_json:
        show_json(record.model_dump_json(indent=1))
    if output is not None and output.failed:
        raise SystemExit(2)
