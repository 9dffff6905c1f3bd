"""Parts of a model that take turns in memory, where it is too short for all of them at once.

Each is read from its file when its turn comes, and let go when that of another one comes. While a part
is not read it has shapes and number types, and no numbers (PyTorch's device "meta").
"""

from __future__ import annotations

import ctypes
import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from torch import nn

Read = Callable[[nn.Module], None]
"""Gives a part its numbers, in the number type that it has."""
_reads: weakref.WeakKeyDictionary[nn.Module, Read] = weakref.WeakKeyDictionary()
"""The parts that take turns. A `Read` must not refer to its part, which would then stay forever."""


def take_turns(part: nn.Module, read: Read) -> None:
    """From now on a part is there in its turn only."""
    part.to("meta")
    _reads[part] = read


def takes_turns(part: nn.Module) -> bool:
    """Whether a part may be missing while others are in memory."""
    return part in _reads


def is_read(part: nn.Module) -> bool:
    """Whether a part has its numbers."""
    return next(part.parameters()).device.type != "meta"


def begin(part: nn.Module) -> None:
    """The turn of a part begins: it is read, and those that are there in turn are let go before."""
    if part in _reads and is_read(part):
        return
    let_go(*(other for other in _reads if other is not part))
    if part in _reads:
        _reads[part](part)


@contextmanager
def reading(*parts: nn.Module) -> Iterator[None]:
    """All of these parts are there inside, for what copies them; they are let go afterwards."""
    missing = [part for part in parts if takes_turns(part) and not is_read(part)]
    for part in missing:
        _reads[part](part)
    yield
    let_go(*missing)


def let_go(*parts: nn.Module) -> None:
    """Give back the memory of parts that take turns."""
    going = [part for part in parts if is_read(part)]
    for part in going:
        part.to("meta")
    if going:
        give_back_memory()


def give_back_memory() -> None:
    """Return memory that is no longer used to the system."""
    gc.collect()
    if sys.platform == "linux":  # glibc keeps freed memory for later
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
