"""DPM-Solver-fast, Lu et al. 2022, section 3.4, as in k-diffusion ("DPM fast").

The range is divided into equal steps in log sigma, of third order with three evaluations each; the
last steps use the remaining evaluations. With s = sigma / alpha, y = x / alpha, h = log(s / s'),
and s1, s2 at a third and two thirds of h (a step of second order has s1 half way, and no s2),

    y1 = y - s1 (e^(h/3) - 1) eps
    y2 = y - s2 (e^(2h/3) - 1) eps - 2 s2 ((e^(2h/3) - 1) / (2h/3) - 1) (eps1 - eps)
    y' = y - s' (e^h - 1) eps - 3/2 s' ((e^h - 1) / h - 1) (eps2 - eps)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pellucid.diffusion import Denoiser, eps_from_x0
from pellucid.samplers import Noise, SamplerSpec, Step, ancestral, euler
from pellucid.schedule import Level

if TYPE_CHECKING:
    from torch import Tensor

SPEC = SamplerSpec(order=None, aliases=("DPM fast", "k_dpm_fast"))


def sample(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, *, eta: float = 1.0
) -> Iterator[Step]:
    """As many evaluations as `levels` has steps, at levels of its own between the first and the last.

    eta: how much of the noise is fresh (A1111: 1); 0 is deterministic. The steps from pure noise
    and to the clean picture are Euler's; A1111 stops before the latter.
    """
    ends = list(levels)
    if ends[0].alpha == 0 or len(ends) == 2:
        for step in euler.sample(denoise, x, ends[:2], noise):
            x = step.x
            yield step
        ends = ends[1:]
    clean = ends.pop() if len(ends) > 1 and ends[-1].sigma == 0 else None
    budget, end = len(ends) - 1, ends[-1]
    count = budget // 3 + 1
    orders = [3] * (count - 2) + [2, 1] if budget % 3 == 0 else [3] * (count - 1) + [budget % 3]
    now = ends[0]
    for i, order in enumerate(orders if budget else []):
        part = (i + 1) / count
        after = end if part == 1 else end.at(ends[0].s ** (1 - part) * end.s**part)
        down = max(ancestral(now.s, after.s, eta)[0], end.s)
        below = after if down == after.s else after.at(down)
        for step in solve(denoise, x, now, below, order):
            x, at = step.x, step.level
            if at is below is not after:
                up = (after.s**2 - down**2) ** 0.5
                x, at = after.alpha * (x / below.alpha + up * noise(x)), after
            yield Step(x, step.x0, at)
        now = after
    if clean is not None:
        yield from euler.sample(denoise, x, [end, clean], noise)


def solve(denoise: Denoiser, x: Tensor, now: Level, after: Level, order: int) -> Iterator[Step]:
    """One step of DPM-Solver of this order, 1 to 3, with all that it goes through."""
    h, y = math.log(now.s / after.s), x / now.alpha
    x0 = denoise(x, now)
    eps = eps_from_x0(x, x0, now)
    d_eps = 0 * eps
    for i in range(1, order):
        part = h * i / order
        at = now.at(now.s * math.exp(-part))
        y_at = y - at.s * (math.expm1(part) * eps + i * (math.expm1(part) / part - 1) * d_eps)
        yield Step(at.alpha * y_at, x0, at)
        x0 = denoise(at.alpha * y_at, at)
        d_eps = eps_from_x0(at.alpha * y_at, x0, at) - eps
    # The second-order step has another weight here, e^h - 1, of the same order.
    weight = math.expm1(h) if order == 2 else 1.5 * (math.expm1(h) / h - 1)
    yield Step(after.alpha * (y - after.s * (math.expm1(h) * eps + weight * d_eps)), x0, after)
