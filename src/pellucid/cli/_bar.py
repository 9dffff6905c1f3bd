"""What is said of work that takes long: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import typer

from pellucid.cli._app import clear_line, printable, screen, show
from pellucid.progress import Stage, followed, share, stage

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
        display = Display(stages)
        torch = AnnouncedImport("torch", "loading PyTorch", display)
        sys.meta_path.insert(0, torch)
        thread = threading.Thread(target=display.follow, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            torch.leave()


@dataclass
class Display:
    """What stderr shows of the work."""

    stages: list[Stage]
    log: Log = field(default_factory=lambda: Log())
    drawn: bool = False
    """Whether there is a bar."""

    def follow(self, ended: threading.Event) -> None:
        """Looks at the work until it has ended, which a long step of it does not hold up."""
        try:
            while not ended.wait(REDRAW):
                self.draw(SHORT)
            if self.drawn:
                clear_line()
        except (OSError, ValueError):  # stderr is closed
            return

    def draw(self, short: float) -> None:
        """Shows how far the work is. short: seconds of work of which no bar is drawn."""
        now, current = time.monotonic(), list(self.stages)
        if not sys.stderr.isatty():
            if (line := self.log.line(current, now)) is not None:
                show(f"pellucid: {line}", err=True)
            return
        with screen:
            if current and now - current[0].began >= short:
                clear_line()
                columns = shutil.get_terminal_size().columns - 1
                typer.echo(with_bar(current, now)[:columns], err=True, nl=False)
                self.drawn = True
            elif self.drawn:
                clear_line()
                self.drawn = False


class AnnouncedImport(MetaPathFinder):
    """Makes the import of a module a stage of the work, which is shown before it begins: importing
    torch takes seconds, in which no other thread gets to run."""

    def __init__(self, module: str, what: str, display: Display) -> None:
        self.module, self.what, self.display = module, what, display

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The module's own spec, whose loader tells what it does."""
        if name != self.module:
            return None
        self.leave()
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = partial(self._load, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec

    def leave(self) -> None:
        """Stops announcing."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def _load(self, load: Callable[[ModuleType], None], module: ModuleType) -> None:
        with stage(self.what):
            with suppress(OSError, ValueError):  # stderr is closed
                self.display.draw(0.0)
            load(module)


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
    for one in stages:
        between = ": " if one is stages[0] else " "
        if one.total is None or (one.total <= 1 and one is stages[0]):
            parts.append(one.what)
        elif one.total > LARGE:
            parts.append(f"{one.what}{between}{one.done / one.total:.0%}")
        else:
            step = min(int(one.done) + 1, int(one.total))
            parts.append(f"{one.what}{between}{step} of {one.total:.0f}")
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
