"""Euler's method on the probability-flow ODE, as in k-diffusion (Karras et al. 2022, eq. 4).

In the coordinates s = sigma / alpha and y = x / alpha the ODE is dy/ds = (y - x0) / s, and that
slope is the noise eps. A straight step is y' = y + (s' - s) eps = x0 + s' eps, so

    x' = alpha' x0 + sigma' eps

which is DDIM with eta = 0: on every schedule the two names mean the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from pellucid.diffusion import Denoiser, eps_from_x0
from pellucid.samplers import Noise, SamplerSpec, Step
from pellucid.schedule import Level

if TYPE_CHECKING:
    from torch import Tensor

SPEC = SamplerSpec(
    order=1,
    aliases=("Euler", "k_euler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
)


def sample(denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """Deterministic; `noise` is not used."""
    for now, after in pairwise(levels):
        x0 = denoise(x, now)
        x = after.alpha * x0 + after.sigma * eps_from_x0(x, x0, now)
        yield Step(x, x0, after)
