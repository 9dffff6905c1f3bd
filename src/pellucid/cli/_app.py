"""What the commands share: the Typer application, and how an error is told."""

from __future__ import annotations

from typing import NoReturn

import typer

app = typer.Typer(
    help="A text-to-image diffusion system that people can see through.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

MODEL_HELP = "A model file; without it the small model that ships with Pellucid."


def fail(message: str) -> NoReturn:
    """Say what is wrong and leave with status 2."""
    typer.echo(f"pellucid: {message}", err=True)
    raise SystemExit(2)
