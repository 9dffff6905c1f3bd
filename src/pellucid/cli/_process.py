"""What the command needs of its process: streams to write to, a working folder, an end by signals."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")


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
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in STOPPING if hasattr(signal, name)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


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
        _stop(came[0], None)


def _stop(number: int, frame: FrameType | None) -> None:
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
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def check_working_folder() -> None:
    """ValueError if the working folder was deleted: libraries that look for it end the program."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ValueError("the working folder was deleted; change to another one") from None
