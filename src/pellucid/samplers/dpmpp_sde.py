"""DPM-Solver++ SDE, k-diffusion ("DPM++ SDE"): a single-step solver of the reverse SDE.

With s = sigma / alpha, y = x / alpha, s_m = sqrt(s s') half way, and (down, up) as in
euler_ancestral, once for the way to s_m and once for the way to s',

    y_m = x0 + down_m eps + up_m noise_m
    y' = (down / s) y + (1 - down / s) x0_m + up noise

noise_m and noise are increments of the same Brownian path in s, so they are correlated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from pellucid.diffusion import Denoiser, eps_from_x0
from pellucid.samplers import Noise, SamplerSpec, Step, ancestral
from pellucid.schedule import Level

if TYPE_CHECKING:
    from torch import Tensor

SPEC = SamplerSpec(
    order=None, aliases=("DPM++ SDE", "k_dpmpp_sde", "DPMSolverSDEScheduler"), spacing="karras"
)


def sample(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, *, eta: float = 1.0
) -> Iterator[Step]:
    """eta: how much of the noise is fresh; 0 is DPM-Solver++(2S), of second order."""
    for now, after in pairwise(levels):
        x0 = denoise(x, now)
        eps = eps_from_x0(x, x0, now)
        down, up = ancestral(now.s, after.s, eta)
        if now.alpha > 0 and after.sigma > 0:
            middle = now.at(math.sqrt(now.s * after.s))
            down_m, up_m = ancestral(now.s, middle.s, eta)
            there = x0 + down_m * eps
            if up > 0:
                first = noise(x)
                there = there + up_m * first
                share = (now.s - middle.s) / (now.s - after.s)
                fresh = share**0.5 * first + (1 - share) ** 0.5 * noise(x)
            there = denoise(middle.alpha * there, middle)
            ratio = down / now.s
            x = after.alpha * (ratio / now.alpha * x + (1 - ratio) * there)
        else:
            x = after.alpha * (x0 + down * eps)
            fresh = noise(x) if up > 0 else eps
        if up > 0:
            x = x + after.alpha * up * fresh
        yield Step(x, x0, after)
