"""Steps without the network: the estimate of x0 is forecast from those of earlier steps.

From step to step the estimates change little and evenly, so a line through the last two says well what
the next one is: the first terms of a Taylor series. Liu et al. 2025 (TaylorSeer, arXiv:2503.06923,
equation 7) forecast the features inside a network like this; the estimate itself needs no access to
the network, and so this serves every model and every sampler that adds no noise of its own.

What guidance changes is reused too: a step may evaluate the prompt alone, and take the difference to
the unconditional noise from a step before (Dinh et al. 2024, "Compress Guidance", arXiv:2408.11194).
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


def computed_steps(begins: Sequence[Level]) -> dict[int, bool]:
    """The steps with an estimate of their own where more is forecast, and whether the unconditional one
    is computed too; elsewhere guidance is reused. begins: the level at which each step begins.

    Of 20 steps 9, of which 5 are whole, as much work as 7. They are chosen by the network's time t, as
    spacings put steps where a picture changes little: the first three, for without one of them a
    picture changes, and then fewer and fewer; and the last one.
    """
    steps = len(begins)
    begin, later = max(3, round(0.15 * steps)), max(6, round(0.3 * steps))
    places = dict.fromkeys(range(begin), True)  # of steps that are equally far apart in t
    for number in range(1, later + 1):
        place = begin - 1 + round((steps - begin) * (number / later) ** 1.25)
        places[place] = number % 3 == 2
    found: dict[int, bool] = {}
    for place, whole in places.items():
        t = begins[0].t + (begins[-1].t - begins[0].t) * place / (steps - 1)
        nearest = min(range(steps), key=lambda step: abs(begins[step].t - t))
        found[nearest] = whole or found.get(nearest, False)
    return found


@dataclass
class Forecast:
    """A guided denoiser of which some steps are forecast.

    begins: the level at which each step begins. changes: the steps before which something changes,
    the prompt or whether there is guidance; what was before says nothing about what comes after.
    alone: the conditional estimate alone; with it there are the fewer steps of `computed_steps`.
    """

    guided: GuidedDenoiser
    begins: Sequence[Level]
    changes: Sequence[int] = ()
    alone: GuidedDenoiser | None = None
    known: list[tuple[float, Parts]] = field(default_factory=list)
    """The last estimates that were computed since the last change, at most two, and their
    `signal_share`."""
    whole: tuple[Level, Parts] | None = None
    """The last one of them that was computed with the unconditional one."""
    step: int = 0

    def __post_init__(self) -> None:
        steps = len(self.begins)
        self.computed = (
            {step: True for step in range(steps) if is_computed(step, steps)}
            if self.alone is None
            else computed_steps(self.begins)
        )

    def __call__(self, x: Tensor, level: Level) -> Parts:
        step, here = step_at(self.begins, level), signal_share(level)
        if any(self.step < change <= step for change in self.changes):
            self.known.clear()
            self.whole = None
        self.step = step
        if len(self.known) == 2 and step not in self.computed:
            (before, first), (after, last) = self.known
            share = (here - after) / (after - before)
            pairs = zip(first, last, strict=True)
            return Parts(*(b + share * (b - a) for a, b in pairs))
        if self.computed.get(step, True) or self.alone is None or self.whole is None:
            parts = self.guided(x, level)
            self.whole = level, parts
        else:
            parts = guided_as(*self.whole, self.alone(x, level).cond, level)
        # A sampler of second order evaluates twice at a level; the second one counts.
        others = [(place, known) for place, known in self.known if place != here]
        self.known = [*others, (here, parts)][-2:]
        return parts


def guided_as(before: Level, last: Parts, cond: Tensor, level: Level) -> Parts:
    """The estimates at `level` of which only the conditional one, `cond`, was computed. The differences
    to it are those of `last`, which belongs to `before`, in the noise: in x0 they fall with
    sigma / alpha."""
    share = 0.0 if before.alpha == 0 else level.s / before.s
    return last.map(lambda part: cond + share * (part - last.cond))
