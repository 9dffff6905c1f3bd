"""What the command needs of its process: streams to write to, a working folder, an end by signals."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from pellucid.cli._app import report

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")
TOGETHER = 0.1  # seconds in which signals are one: `timeout` and other programs pass one on twice
SOON = 0.4  # more seconds, in which a signal should have taken effect
WAITING = "stopping after this step; press Ctrl-C again to stop at once"


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """stdout and stderr that take every text: escaped where their encoding does not have a letter.

    A stream that was closed (``>&-``) is replaced by one that leads nowhere.
    """
    with contextlib.ExitStack() as opened:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:
                nowhere = opened.enter_context(open(os.devnull, "w", encoding="utf-8"))
                setattr(sys, name, nowhere)
                opened.callback(setattr, sys, name, None)
            elif isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        yield


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt; SIGTERM and SIGHUP end the program with 128 + their number.

    Both as exceptions, so that temporary files are removed. A signal that is ignored stays ignored.
    An exception waits for the end of an operation of C code, which can take minutes; the first signal
    says so, and a second one ends the program.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in STOPPING if hasattr(signal, name)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, _stop)
    try:
        with _watched() if before and os.name == "posix" else contextlib.nullcontext():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Signals in the block are seen by a thread too, for which C code is no obstacle."""
    global _taken_at
    _taken_at = None
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    ended = threading.Event()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(reading, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        ended.set()
        with contextlib.suppress(BlockingIOError):
            os.write(writing, b"\0")  # wakes the thread; a forked process may have the pipe open
        thread.join()
        os.close(writing)
        os.close(reading)


_taken_at: float | None = None  # when a signal took effect


def _watch(reading: int, ended: threading.Event) -> None:
    """Says what the first signal waits for, and ends the program at the second.

    reading: a pipe that gets the number of each signal as a byte. ended: set when the program ends by
    itself.
    """
    first = True
    while not ended.is_set() and (numbers := os.read(reading, 64)) and not ended.is_set():
        # A server has its own handlers.
        ours = [number for number in numbers if signal.getsignal(number) is _stop]
        if not ours:
            continue
        if first:
            ended.wait(TOGETHER)
            os.set_blocking(reading, False)
            with contextlib.suppress(BlockingIOError):
                os.read(reading, 64)
            os.set_blocking(reading, True)
        if ended.wait(SOON):
            return
        if not first:
            with contextlib.suppress(OSError):
                os.write(2, b"\r\x1b[K" if os.isatty(2) else b"")
                os.write(2, b"pellucid: stopped\n")
            os._exit(128 + ours[0])
        first = False
        if _taken_at is None:
            with contextlib.suppress(OSError, ValueError):  # stderr is closed
                report(WAITING)


_held: list[int] | None = None  # the signals that came in a block of `held_signals`


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """The first signal that comes in the block takes effect after it, the second at once."""
    global _held
    _held = []
    try:
        yield
    finally:
        came, _held = _held, None
    if came:
        _end(came[0])


def _stop(number: int, frame: FrameType | None) -> None:
    global _taken_at
    now = time.monotonic()
    if _taken_at is not None and now - _taken_at < TOGETHER:
        return
    _taken_at = now
    if _held == []:
        _held.append(number)
        return
    while frame is not None:  # in an import the exception could be lost in C code
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            with contextlib.suppress(OSError):
                if os.isatty(2):
                    os.write(2, b"\r\x1b[K")  # the bar of the import
            os._exit(128 + number)
        frame = frame.f_back
    _end(number)


def _end(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def check_working_folder() -> None:
    """ValueError if the working folder was deleted: libraries that look for it end the program."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ValueError("the working folder was deleted; change to another one") from None
