"""DPM2 of k-diffusion: the midpoint method on the probability-flow ODE.

DPM-Solver-2 (Lu et al. 2022, algorithm 1) with the midpoint in log sigma, in the coordinates of
Karras et al. 2022. In s = sigma / alpha and y = x / alpha, dy/ds = eps; evaluate again half way,
and step with the slope that is found there:

    s_m = sqrt(s s')     y_m = y + (s_m - s) eps     y' = y + (s' - s) eps_m

Two network evaluations per step, except the first from pure noise and the last to sigma = 0, which
are Euler steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from pellucid.diffusion import Denoiser, eps_from_x0
from pellucid.samplers import Noise, SamplerSpec, Step
from pellucid.schedule import SPACINGS, Level

if TYPE_CHECKING:
    from torch import Tensor

SPEC = SamplerSpec(
    order=2,
    aliases=("DPM2", "dpm_2", "kdpm_2", "k_dpm_2", "KDPM2DiscreteScheduler"),
    spacing="karras",
    skip_penultimate=SPACINGS,
)


def sample(denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """Deterministic; `noise` is not used."""
    for now, after in pairwise(levels):
        x0 = denoise(x, now)
        eps = eps_from_x0(x, x0, now)
        if now.alpha > 0 and after.sigma > 0:
            middle = now.at(math.sqrt(now.s * after.s))
            there = middle.alpha * x0 + middle.sigma * eps
            slope = eps_from_x0(there, denoise(there, middle), middle)
            x = after.alpha * (x / now.alpha + (after.s - now.s) * slope)
        else:
            x = after.alpha * x0 + after.sigma * eps
        yield Step(x, x0, after)
