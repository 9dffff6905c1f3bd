"""What the commands share: the Typer application, and how an error is told."""

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


def _version(asked: bool) -> None:
    if asked:
        python = ".".join(map(str, sys.version_info[:3]))
        typer.echo(f"pellucid {__version__}, torch {metadata.version('torch')}, Python {python}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Its number.")
    ] = False,
) -> None:
    """What can be given in front of every command."""


def tell(message: str) -> None:
    """A message on stderr; on a terminal it takes the place of a bar that was left behind."""
    erase = "\r\x1b[K" if sys.stderr.isatty() else ""
    typer.echo(f"{erase}pellucid: {message}", err=True)


def fail(message: str) -> NoReturn:
    """Say what is wrong and leave with status 2."""
    tell(message)
    raise SystemExit(2)
