"""Schedules compared: their curves, and what they do to one picture at the same times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from pellucid.diffusion import add_noise
from pellucid.html.records import Picture, Record
from pellucid.images.pixels import to_pil
from pellucid.plugins import choose
from pellucid.schedule import SCHEDULES, Level, Schedule

POINTS = 101
MARK = " (model's)"
ABOUT = {
    "linear": "DDPM (Ho et al. 2020): each small step adds a little more noise than the last one.",
    "scaled_linear": "Stable Diffusion (Rombach et al. 2022): their square roots rise linearly.",
    "cosine": "Nichol & Dhariwal 2021: alpha is a quarter of a cosine wave.",
    "sigmoid": "Jabri et al. 2022: more of the picture is left near the end than with cosine.",
    "laplace": "Hang et al. 2024: most of the time is spent where picture and noise are nearly equal.",
    "flow": "Rectified flow (Liu et al. 2022): a straight line from picture to noise.",
    "zero_terminal_snr": "Lin et al. 2023: scaled_linear, rescaled to end in pure noise.",
}


class ScheduleCurves(Record):
    """A schedule at `t` (N,): x = alpha * x0 + sigma * eps."""

    name: str
    about: str
    """Its paper, and what characterizes it."""
    t: tuple[float, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    log_snr: tuple[float, ...]
    """log(alpha^2 / sigma^2); infinite where one of them is 0."""
    left: tuple[float, ...]
    """What is left of the picture: its share of the variance of x, 0 to 1."""
    strip: tuple[Picture, ...]
    """x at each of the chosen times, all with the same noise."""


def published() -> dict[str, Schedule]:
    """The schedules that are compared, as their papers define them."""
    schedules = {name: Schedule(name) for name in SCHEDULES}
    schedules["linear"] = Schedule("linear", beta_start=1e-4, beta_end=0.02)  # Ho et al. 2020
    return {**schedules, "zero_terminal_snr": Schedule("scaled_linear", zero_terminal_snr=True)}


def schedule_named(name: str) -> Schedule:
    """One of `published`. ValueError lists the names, nearest first."""
    schedules = published()
    return schedules[choose(name, schedules, "schedule")]


def with_models_own(own: Schedule) -> dict[str, Schedule]:
    """The known schedules, and `own` if it is none of them; it is marked as the model's."""
    schedules = published()
    if own not in schedules.values():
        schedules[own.name] = own
    return {name + MARK * (schedule == own): schedule for name, schedule in schedules.items()}


def level_at(schedule: Schedule, t: float) -> Level:
    """The level at time t of 1000, for any T of the schedule."""
    return schedule.level(min(t * schedule.T / 1000, schedule.last_t))


def compare_schedules(
    x0: Tensor, eps: Tensor, times: Sequence[float], schedules: Mapping[str, Schedule]
) -> tuple[ScheduleCurves, ...]:
    """x0, eps: (3, H, W), pixels in [-1, 1] and unit noise. times: of 1000, for the strips."""
    variance = float(x0.double().var(unbiased=False))
    curves = []
    for name, schedule in schedules.items():
        t = np.linspace(0, schedule.last_t, POINTS)
        levels = [schedule.level(float(at)) for at in t]
        chosen = [level_at(schedule, at) for at in times]
        curves.append(
            ScheduleCurves(
                name=name,
                about=ABOUT[name.removesuffix(MARK)],
                t=tuple(float(at) for at in t),
                alpha=tuple(level.alpha for level in levels),
                sigma=tuple(level.sigma for level in levels),
                log_snr=tuple(2 * level.half_log_snr for level in levels),
                left=tuple(picture_share(level, variance) for level in levels),
                strip=tuple(to_pil(add_noise(x0, eps, at.alpha, at.sigma)) for at in chosen),
            )
        )
    return tuple(curves)


def picture_share(level: Level, variance: float) -> float:
    """The picture's share of the variance of x. variance: of the picture without noise."""
    picture, noise = level.alpha**2 * variance, level.sigma**2
    return picture / (picture + noise) if picture + noise > 0 else math.nan  # a flat clean picture
