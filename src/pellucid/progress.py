"""How far long work is, for whoever wants to show it: the work does not know who does.

    with followed() as stages:          # at the edge, which reads `stages` from another thread
        for tensor in each("loading", tensors): ...

Without `followed` nothing is kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(eq=False)
class Stage:
    """A part of the work that is under way.

    what: in words, such as "loading sd15.safetensors". total: how many steps it has; None: not known.
    done: how many are done, or what share of one that is under way. began: by the clock of `time`.
    """

    what: str
    total: float | None = None
    done: float = 0.0
    began: float = field(default_factory=lambda: time.monotonic())


_stages: ContextVar[list[Stage] | None] = ContextVar("stages", default=None)


@contextmanager
def followed() -> Iterator[list[Stage]]:
    """The stages that the work in the block is in at any time, the outermost first."""
    stages: list[Stage] = []
    before = _stages.set(stages)
    try:
        yield stages
    finally:
        _stages.reset(before)


@contextmanager
def stage(what: str, total: float | None = None) -> Iterator[Stage]:
    """The block is a stage of the work; `done` is to be set as it proceeds."""
    stages, now = _stages.get(), Stage(what, total)
    if stages is None:
        yield now
        return
    stages.append(now)
    try:
        yield now
    finally:
        stages.remove(now)


def each(what: str, items: Iterable[Item], total: float | None = None) -> Iterator[Item]:
    """The same items; the work with each of them is a step of a stage. total: None is `len(items)`."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with stage(what, total) as now:
        for item in items:
            yield item
            now.done += 1


def share(stages: Sequence[Stage]) -> float | None:
    """How much of the first stage is done, 0..1, with what is done within its present step; None if
    that is not known. A stage without a known number of steps is as far as the one within it."""
    if not stages:
        return None
    first, within = stages[0], share(stages[1:])
    if not first.total:
        return within
    return min(max(first.done, int(first.done) + (within or 0.0)) / first.total, 1.0)
