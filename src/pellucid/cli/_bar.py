"""A progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[..., None]
"""As `rich.progress.Progress.update` of one task: completed=, total=, description=."""


@contextmanager
def bar(description: str, total: float | None = None) -> Iterator[Advance]:
    """A progress bar on stderr, or nothing if that is not a terminal."""
    from functools import partial

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    hidden = not console.is_terminal  # without this it still writes an empty line
    with Progress(*columns, console=console, transient=True, disable=hidden) as shown:
        yield partial(shown.update, shown.add_task(description, total=total))
