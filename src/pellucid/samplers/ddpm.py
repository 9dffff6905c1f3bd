"""DDPM's ancestral sampling, Ho et al. 2020, eq. 6 and 7, between any two levels.

Given x at the level now and the picture x0, x' at the cleaner level after is Gaussian:

    r = alpha / alpha'        w^2 = sigma^2 - r^2 sigma'^2     (the noise added from after to now)
    mean = (r sigma'^2 x + alpha' w^2 x0) / sigma^2
    variance = w^2 sigma'^2 / sigma^2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from pellucid.diffusion import Denoiser
from pellucid.samplers import Noise, SamplerSpec, Step
from pellucid.schedule import Level

if TYPE_CHECKING:
    from torch import Tensor

SPEC = SamplerSpec(order=None, aliases=("DDPM", "DDPMScheduler"))


def sample(denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """Fresh noise at every step; it needs many of them, T in the paper."""
    for now, after in pairwise(levels):
        x0 = denoise(x, now)
        ratio = now.alpha / after.alpha
        added = max(now.sigma**2 - ratio**2 * after.sigma**2, 0)
        x = (ratio * after.sigma**2 * x + after.alpha * added * x0) / now.sigma**2
        if after.sigma > 0:
            x = x + added**0.5 * after.sigma / now.sigma * noise(x)
        yield Step(x, x0, after)
