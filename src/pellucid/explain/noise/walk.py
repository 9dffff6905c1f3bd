"""The same noise in a thousand small steps and in one jump: not the same numbers, the same law.

A small step multiplies by a little less than 1 and adds a little noise; sums of normal noises are
normal, so that all the steps to t are one jump to t (Ho et al. 2020, eq. 2 and 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from pellucid.diffusion import add_noise, small_step
from pellucid.explain.noise.schedules import level_at
from pellucid.html.records import Picture, Record
from pellucid.images.pixels import to_pil
from pellucid.schedule import CLEAN, Schedule


class Moments(Record):
    """The mean and the variance of x over its numbers: as the equation has them, and as measured.

    The deviations are those that measuring has, which a picture has the fewer numbers the more of.
    """

    t: int
    mean: float
    mean_deviation: float
    jump_mean: float
    steps_mean: float
    variance: float
    variance_deviation: float
    jump_variance: float
    steps_variance: float
    jump: Picture
    steps: Picture


class Walk(Record):
    """`count` small steps along a schedule, looked at on the way."""

    schedule: str
    count: int
    moments: tuple[Moments, ...]


def walk(x0: Tensor, times: Sequence[float], schedule: Schedule, generator: Generator) -> Walk:
    """x0: (3, H, W), pixels in [-1, 1]. times: of 1000, rounded to whole t of the schedule.

    Works in float64, so that a thousand roundings are not what is seen.
    """
    x0 = x0.double()
    mean, variance, count = float(x0.mean()), float(x0.var(unbiased=False)), x0.numel()
    stops = sorted({round(level_at(schedule, time).t) for time in times})
    moments = []
    x, before = x0, CLEAN
    for t in range(stops[-1] + 1):
        level = schedule.level(t)
        x = small_step(x, torch.randn(x.shape, generator=generator, dtype=x.dtype), before, level)
        before = level
        if t in stops:
            eps = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            jump = add_noise(x0, eps, level.alpha, level.sigma)
            alpha, sigma = level.alpha, level.sigma
            # of the sample variance of alpha * x0 + sigma * eps: its terms 2 alpha sigma x0 eps
            # and sigma^2 eps^2
            spread = 4 * alpha**2 * sigma**2 * variance + 2 * sigma**4
            moments.append(
                Moments(
                    t=t,
                    mean=alpha * mean,
                    mean_deviation=sigma / math.sqrt(count),
                    jump_mean=float(jump.mean()),
                    steps_mean=float(x.mean()),
                    variance=alpha**2 * variance + sigma**2,
                    variance_deviation=math.sqrt(spread / count),
                    jump_variance=float(jump.var(unbiased=False)),
                    steps_variance=float(x.var(unbiased=False)),
                    jump=to_pil(jump),
                    steps=to_pil(x),
                )
            )
    return Walk(schedule=schedule.name, count=stops[-1] + 1, moments=tuple(moments))
