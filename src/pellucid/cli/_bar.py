"""Progress bars."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from pellucid.cli._app import clear_line, printable, show

WIDTH = 24  # of a bar in `show_progress`, in characters

Advance = Callable[..., None]
"""As `rich.progress.Progress.update` of one task: completed=, total=, description=."""


@contextmanager
def bar(description: str, total: float | None = None) -> Iterator[Advance]:
    """A progress bar on stderr, or nothing if that is not a terminal."""
    from functools import partial

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
    hidden = not console.is_terminal  # without this it still writes an empty line
    # Results go to stdout while it moves, and must not be turned to its console.
    progress = Progress(
        *columns,
        console=console,
        transient=True,
        disable=hidden,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with progress as shown:
        yield partial(shown.update, shown.add_task(printable(description), total=total))


def show_progress(line: str, *, share: float | None = None, kept: bool = True) -> None:
    """A `pellucid.train.loop.Say`, on stderr: a bar that moves on a terminal, lines elsewhere.

    It has no state, so that a loop can call it in another process.
    """
    if share is None or not sys.stderr.isatty():
        if kept:
            show(line, err=True)
        return
    full = round(WIDTH * share)
    clear_line()
    bar = "━" * full + "─" * (WIDTH - full)
    typer.echo(f"{bar} {printable(line)}", err=True, nl=share == 1)
