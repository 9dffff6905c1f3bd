"""DPM2 ancestral, k-diffusion ("DPM2 a"): DPM2 to below the next level, then noise up to it.

With s = sigma / alpha, y = x / alpha, and (down, up) as in euler_ancestral,

    s_m = sqrt(s down)     y_m = y + (s_m - s) eps     y' = y + (down - s) eps_m + up noise
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from pellucid.diffusion import Denoiser, eps_from_x0
from pellucid.samplers import Noise, SamplerSpec, Step, ancestral
from pellucid.schedule import SPACINGS, Level

if TYPE_CHECKING:
    from torch import Tensor

SPEC = SamplerSpec(
    order=None,
    aliases=(
        "DPM2 a",
        "DPM2 ancestral",
        "dpm2_a",
        "dpm_2_a",
        "dpm_2_ancestral",
        "kdpm_2_a",
        "k_dpm_2_a",
        "k_dpm_2_ancestral",
        "KDPM2AncestralDiscreteScheduler",
    ),
    spacing="karras",
    skip_penultimate=SPACINGS,
)


def sample(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, *, eta: float = 1.0
) -> Iterator[Step]:
    """eta: how much of the noise is fresh; 0 is DPM2."""
    for now, after in pairwise(levels):
        x0 = denoise(x, now)
        eps = eps_from_x0(x, x0, now)
        down, up = ancestral(now.s, after.s, eta)
        if now.alpha > 0 and down > 0:
            middle = now.at(math.sqrt(now.s * down))
            there = middle.alpha * x0 + middle.sigma * eps
            slope = eps_from_x0(there, denoise(there, middle), middle)
            x = after.alpha * (x / now.alpha + (down - now.s) * slope)
        else:
            x = after.alpha * (x0 + down * eps)
        if up > 0:
            x = x + after.alpha * up * noise(x)
        yield Step(x, x0, after)
