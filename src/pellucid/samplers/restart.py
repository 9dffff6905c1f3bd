"""Restart sampling, Xu et al. 2023: go part of the way back up with fresh noise, and down again.

Down with Heun's method. With 20 steps or more, the ladder of levels is one of Karras's with fewer
steps, and those saved are used for going from s = 0.1 back to s = 2, by adding noise, and down once
more (A1111's numbers: 9 steps once; from 36 steps on a quarter of the steps, twice):

    y = y + sqrt(s_up^2 - s^2) noise          s = sigma / alpha, y = x / alpha
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pellucid.diffusion import Denoiser
from pellucid.samplers import Noise, SamplerSpec, Step, heun
from pellucid.schedule import NOISIEST, Level, curve

if TYPE_CHECKING:
    from torch import Tensor

SPEC = SamplerSpec(order=None, aliases=("Restart",), spacing="karras")
FROM, BACK_TO = 0.1, 2.0


def sample(denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """As many steps as `levels` has; from 20 steps on they are at other levels than these."""
    before = levels[0]
    for path in paths(levels):
        if path[0].s > before.s:
            up = (path[0].s ** 2 - before.s**2) ** 0.5
            x = path[0].alpha * (x / before.alpha + up * noise(x))
        for step in heun.sample(denoise, x, path, noise):
            yield step
        x, before = step.x, path[-1]


def paths(levels: Sequence[Level]) -> list[list[Level]]:
    """The ways down, each from where the one before it ended, or from above."""
    steps = len(levels) - 1
    if steps < 20:
        return [list(levels)]
    again, times = (steps // 4, 2) if steps >= 36 else (9, 1)
    ladder = [levels[0], *_karras(levels[0], levels[-2], steps - again * times)[1:], levels[-1]]
    low = min(range(len(ladder) - 1), key=lambda i: abs(ladder[i].s - FROM))
    high = min(range(len(ladder)), key=lambda i: abs(ladder[i].s - BACK_TO))
    if high >= low:  # a run that begins below
        return [list(levels)]
    back = _karras(ladder[high], ladder[low], again + 1)
    return [ladder[: low + 1], *[back] * times, ladder[low:]]


def _karras(high: Level, low: Level, count: int) -> list[Level]:
    inner = curve("karras", count, min(high.s, NOISIEST), low.s)[1:-1]
    return [high, *(high.at(float(s)) for s in inner), low]
