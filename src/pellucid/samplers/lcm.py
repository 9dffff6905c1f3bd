"""Multistep consistency sampling, Luo et al. 2023, "Latent Consistency Models".

A consistency model sees the end of the path at once. It is blended with x near t = 0, so that it
is the identity there, and its answer is noised again to the next level:

    f = c_skip x + c_out x0     c_skip = d^2 / (q^2 + d^2)     c_out = q / sqrt(q^2 + d^2)
    x' = alpha' f + sigma' noise               q = 10 t, d = 1/2

For models that were distilled so, in 1 to 8 steps; another model gives soft pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from pellucid.diffusion import Denoiser
from pellucid.samplers import Noise, SamplerSpec, Step
from pellucid.schedule import Level

if TYPE_CHECKING:
    from torch import Tensor

SPEC = SamplerSpec(order=None, aliases=("LCM", "LCMScheduler"), spacing="lcm")
SIGMA_DATA = 0.5
TIME_SCALE = 10.0


def sample(denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """Fresh noise at every step but the last."""
    for now, after in pairwise(levels):
        x0 = denoise(x, now)
        q = TIME_SCALE * now.t
        skip = SIGMA_DATA**2 / (q**2 + SIGMA_DATA**2)
        out = q / math.hypot(q, SIGMA_DATA)
        x = after.alpha * (skip * x + out * x0)
        if after.sigma > 0:
            x = x + after.sigma * noise(x)
        yield Step(x, x0, after)
