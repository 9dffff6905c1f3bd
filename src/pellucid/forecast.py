"""Steps without the network: the estimate of x0 is forecast from those of earlier steps.

From step to step the estimates change little and evenly, so a line through the last two says well what
the next one is: the first terms of a Taylor series. Liu et al. 2025 (TaylorSeer, arXiv:2503.06923,
equation 7) forecast the features inside a network like this; the estimate itself needs no access to
the network, and so this serves every model and every sampler that adds no noise of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pellucid.guidance import GuidedDenoiser, Parts, signal_share, step_at
from pellucid.schedule import Level

FEWEST = 12
"""Steps from which on forecasting does no visible harm."""
BEGINNING = 0.3
"""The part of the steps that are all computed: there the picture is decided."""


def is_computed(step: int, steps: int) -> bool:
    """Whether a step has its own estimate: those of the beginning, every second one after it, and the
    last."""
    begin = int(BEGINNING * steps)
    return step < begin or (step - begin) % 2 == 0 or step == steps - 1


@dataclass
class Forecast:
    """A guided denoiser of which some steps are forecast.

    begins: the level at which each step begins. changes: the steps before which something changes,
    the prompt or whether there is guidance; what was before says nothing about what comes after.
    """

    guided: GuidedDenoiser
    begins: Sequence[Level]
    changes: Sequence[int] = ()
    known: list[tuple[float, Parts]] = field(default_factory=list)
    """The last estimates that were computed since the last change, at most two, and their
    `signal_share`."""
    step: int = 0

    def __call__(self, x: Tensor, level: Level) -> Parts:
        step, here = step_at(self.begins, level), signal_share(level)
        if any(self.step < change <= step for change in self.changes):
            self.known.clear()
        self.step = step
        if len(self.known) == 2 and not is_computed(step, len(self.begins)):
            (before, first), (after, last) = self.known
            share = (here - after) / (after - before)
            pairs = zip(first, last, strict=True)
            return Parts(*(b + share * (b - a) for a, b in pairs))
        parts = self.guided(x, level)
        # A sampler of second order evaluates twice at a level; the second one counts.
        others = [(place, known) for place, known in self.known if place != here]
        self.known = [*others, (here, parts)][-2:]
        return parts
