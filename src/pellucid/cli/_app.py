"""What the commands share: the Typer application, and how results and errors are shown.

Texts come from files and from other people: a prompt in a picture, the metadata of a LoRA, a name.
Whatever is printed shows control characters escaped, so that no text controls the terminal.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pellucid import __version__
from pellucid.cli._options import option_of
from pellucid.messages import written

app = typer.Typer(
    help="A text-to-image diffusion system that people can see through.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(given: bool) -> None:
    if given:
        python = ".".join(map(str, sys.version_info[:3]))
        typer.echo(f"pellucid {__version__}, torch {metadata.version('torch')}, Python {python}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version.")
    ] = False,
) -> None:
    """Options before the command."""


screen = threading.RLock()
"""Whoever holds it writes to the terminal: a bar is drawn by another thread."""

# All control characters but the newline, what turns the direction of a line, and lone surrogates.
_CONTROLS = re.compile("[\0-\t\v-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """A text with escapes in place of what controls a terminal; newlines stay."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def show(text: str, err: bool = False) -> None:
    """A text for people, on stdout or stderr."""
    with screen:
        clear_line()
        typer.echo(printable(text), err=err)


def show_path(path: Path | str) -> None:
    """The path of a result, on stdout, where other programs read it.

    In the bytes of the file system where the output has another encoding.
    """
    name = os.fsencode(path)
    text = name.decode("utf-8", "surrogateescape")
    if printable(text) != text:
        show(text)
        return
    with screen:
        clear_line()
        try:
            str(path).encode(sys.stdout.encoding or "utf-8")
            typer.echo(path)
        except UnicodeEncodeError:
            typer.echo(name)


def show_json(text: str) -> None:
    """JSON, on stdout, in ASCII: exactly the same values, and nothing that controls a terminal."""
    escaped = re.sub("[^\n -\x7f]", lambda found: json.dumps(found[0])[1:-1], text)
    typer.echo(escaped.replace("\x7f", r"\u007f"))  # DEL, which is ASCII


def report(message: str) -> None:
    """A message on stderr, in which a request's fields are named by their options."""
    show(f"pellucid: {written(message, option_of)}", err=True)


def clear_line() -> None:
    """Erases an unfinished progress bar, where there may be one."""
    if sys.stderr.isatty():
        typer.echo("\r\x1b[K", nl=False, err=True)


def fail(message: str) -> NoReturn:
    """Report an error and exit with status 2."""
    report(message)
    raise SystemExit(2)
