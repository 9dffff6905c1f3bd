"""The same noise in a thousand small steps and in one jump: other numbers, the same distribution.

A small step multiplies by a little less than 1 and adds a little noise; sums of normal variables
are normal, so all the steps to t together are one jump to t (Ho et al. 2020, eq. 2 and 4).
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
from pellucid.progress import each
from pellucid.schedule import CLEAN, Level, Schedule


class Moments(Record):
    """Mean and variance of x over its numbers: by the equation, and as measured.

    The deviations are those of the measurement: a small picture has few numbers to average.
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


class Trajectory(Record):
    """`count` small steps along a schedule, observed on the way."""

    schedule: str
    count: int
    moments: tuple[Moments, ...]


def random_trajectory(
    x0: Tensor, times: Sequence[float], schedule: Schedule, generator: Generator
) -> Trajectory:
    """x0: (3, H, W), pixels in [-1, 1]. times: of 1000, rounded to whole t of the schedule.

    Computes in float64, so that the rounding errors of a thousand steps do not show.
    """
    x0 = x0.double()
    stops = sorted({round(level_at(schedule, time).t) for time in times})
    moments = []
    x, before = x0, CLEAN
    for t in each("adding noise in small steps", range(stops[-1] + 1)):
        level = schedule.level(t)
        x = small_step(x, torch.randn(x.shape, generator=generator, dtype=x.dtype), before, level)
        before = level
        if t in stops:
            eps = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            moments.append(measure(t, level, x0, x, add_noise(x0, eps, level.alpha, level.sigma)))
    return Trajectory(schedule=schedule.name, count=stops[-1] + 1, moments=tuple(moments))


def measure(t: int, level: Level, x0: Tensor, steps: Tensor, jump: Tensor) -> Moments:
    """The moments at t. steps: x after small steps; jump: x after one."""
    mean, variance, count = float(x0.mean()), float(x0.var(unbiased=False)), x0.numel()
    alpha, sigma = level.alpha, level.sigma
    # Of the sample variance of alpha * x0 + sigma * eps: its terms 2 alpha sigma x0 eps and
    # sigma^2 eps^2.
    spread = 4 * alpha**2 * sigma**2 * variance + 2 * sigma**4
    return Moments(
        t=t,
        mean=alpha * mean,
        mean_deviation=sigma / math.sqrt(count),
        jump_mean=float(jump.mean()),
        steps_mean=float(steps.mean()),
        variance=alpha**2 * variance + sigma**2,
        variance_deviation=math.sqrt(spread / count),
        jump_variance=float(jump.var(unbiased=False)),
        steps_variance=float(steps.var(unbiased=False)),
        jump=to_pil(jump),
        steps=to_pil(steps),
    )
