"""What is said of work that takes long: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from pellucid.cli._app import clear_line, printable, screen, show
from pellucid.progress import Stage, followed, share

WIDTH = 24  # of a bar, in characters
REDRAW = 0.2  # seconds between two looks at the work
SHORT = 0.5  # seconds of work of which no bar is drawn
LINES: tuple[float, ...] = (2.0, 10.0, 30.0)  # seconds until the first lines in a log
LATER = 60.0  # seconds between the lines after these
ENOUGH = 0.01  # of the work, before the time that is left is shown
LARGE = 10_000  # more steps than this are shown as a percentage


@contextmanager
def shown_progress() -> Iterator[None]:
    """The stages of the work in the block are shown on stderr."""
    ended = threading.Event()
    with followed() as stages:
        thread = threading.Thread(target=_show, args=(stages, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _show(stages: list[Stage], ended: threading.Event) -> None:
    """Looks at the work until it has ended, which a long step of it does not hold up."""
    log, drawn = Log(), False
    while not ended.wait(REDRAW):
        now, current = time.monotonic(), list(stages)
        try:
            if not sys.stderr.isatty():
                if (line := log.line(current, now)) is not None:
                    show(f"pellucid: {line}", err=True)
                continue
            with screen:
                if current and now - current[0].began > SHORT:
                    clear_line()
                    columns = shutil.get_terminal_size().columns - 1
                    typer.echo(with_bar(current, now)[:columns], err=True, nl=False)
                    drawn = True
                elif drawn:
                    clear_line()
                    drawn = False
        except (OSError, ValueError):  # stderr is closed
            return
    if drawn:
        clear_line()


class Log:
    """Which lines a log gets of work, and when."""

    def __init__(self) -> None:
        self.began: float | None = None
        self.due = LINES[0]  # seconds after `began`
        self.named: Stage | None = None

    def line(self, stages: Sequence[Stage], now: float) -> str | None:
        """What there is to say of the stages at this time: after `LINES` and then every `LATER`
        seconds, and of a new stage as soon as it has lasted as long as the first of these."""
        if not stages:
            return None
        first = stages[0]
        self.began = first.began if self.began is None else self.began
        new = first is not self.named and now - first.began >= LINES[0]
        elapsed = now - self.began
        if elapsed < self.due and not new:
            return None
        while self.due < elapsed + LINES[0]:
            self.due = next((t for t in LINES if t > self.due), self.due + LATER)
        self.named = first
        return described(stages, now)


def described(stages: Sequence[Stage], now: float) -> str:
    """The stages in words, such as "estimates: 3 of 9, decoding the picture, 40 s left"."""
    parts = []
    for stage in stages:
        between = ": " if stage is stages[0] else " "
        if stage.total is None or (stage.total <= 1 and stage is stages[0]):
            parts.append(stage.what)
        elif stage.total > LARGE:
            parts.append(f"{stage.what}{between}{stage.done / stage.total:.0%}")
        else:
            step = min(int(stage.done) + 1, int(stage.total))
            parts.append(f"{stage.what}{between}{step} of {stage.total:.0f}")
    elapsed, done = now - stages[0].began, share(stages)
    if done is not None and done >= ENOUGH:
        parts.append(f"{in_words(elapsed / done * (1 - done))} left")
    elif elapsed >= 1:
        parts.append(f"{in_words(elapsed)} so far")
    return printable(", ".join(parts).replace("\n", " "))


def with_bar(stages: Sequence[Stage], now: float) -> str:
    """As `described`, behind a bar."""
    return f"{bar(share(stages) or 0.0)} {described(stages, now)}"


def bar(done: float) -> str:
    """done: 0..1."""
    full = round(WIDTH * done)
    return "━" * full + "─" * (WIDTH - full)


def in_words(seconds: float) -> str:
    """A time, in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def show_progress(line: str, *, share: float | None = None, kept: bool = True) -> None:
    """A `pellucid.train.loop.Say`, on stderr: a bar that moves on a terminal, lines elsewhere.

    It has no state, so that a loop can call it in another process.
    """
    if share is None or not sys.stderr.isatty():
        if kept:
            show(line, err=True)
        return
    with screen:
        clear_line()
        typer.echo(f"{bar(share)} {printable(line)}", err=True, nl=share == 1)
