"""A progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pellucid.cli._app import printable

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
