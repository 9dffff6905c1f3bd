"""What the commands share: the Typer application, and how errors are reported."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Annotated, NoReturn

import typer

from pellucid import __version__

app = typer.Typer(
    help="A text-to-image diffusion system that people can see through.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
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


def report(message: str) -> None:
    """A message on stderr; on a terminal it overwrites an unfinished progress bar."""
    erase = "\r\x1b[K" if sys.stderr.isatty() else ""
    typer.echo(f"{erase}pellucid: {message}", err=True)


def fail(message: str) -> NoReturn:
    """Report an error and exit with status 2."""
    report(message)
    raise SystemExit(2)
