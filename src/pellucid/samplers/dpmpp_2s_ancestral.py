"""DPM-Solver++(2S), Lu et al. 2022b, algorithm 1, ancestral as in k-diffusion ("DPM++ 2S a").

A single-step solver: it evaluates half way (in log sigma), takes that estimate of x0 for the whole
step to below the next level, and adds noise up to it. With s = sigma / alpha, y = x / alpha, and
(down, up) as in euler_ancestral,

    s_m = sqrt(s down)     y_m = x0 + s_m eps     y' = (down / s) y + (1 - down / s) x0_m + up noise
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
    order=None,
    aliases=(
        "DPM++ 2S a",
        "DPM++ 2S ancestral",
        "dpmpp_2s_a",
        "k_dpmpp_2s_a",
        "k_dpmpp_2s_ancestral",
    ),
    spacing="karras",
)


def sample(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, *, eta: float = 1.0
) -> Iterator[Step]:
    """eta: how much of the noise is fresh; 0 is DPM-Solver++(2S), of second order."""
    for now, after in pairwise(levels):
        x0 = denoise(x, now)
        eps = eps_from_x0(x, x0, now)
        down, up = ancestral(now.s, after.s, eta)
        if now.alpha > 0 and down > 0:
            middle = now.at(math.sqrt(now.s * down))
            there = denoise(middle.alpha * x0 + middle.sigma * eps, middle)
            ratio = down / now.s
            x = after.alpha * (ratio / now.alpha * x + (1 - ratio) * there)
        else:
            x = after.alpha * (x0 + down * eps)
        if up > 0:
            x = x + after.alpha * up * noise(x)
        yield Step(x, x0, after)
