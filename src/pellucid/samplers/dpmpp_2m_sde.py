"""DPM-Solver++(2M) SDE, Lu et al. 2022; the midpoint form of k-diffusion.

As dpmpp_2m, on the SDE: with lambda = log(alpha / sigma) and h = lambda' - lambda,

    D = x0 + (x0 - the x0 before) h / (2 (the h before))
    x' = (sigma' / sigma) e^(-eta h) x + alpha' (1 - e^(-(1 + eta) h)) D
         + sigma' sqrt(1 - e^(-2 eta h)) noise
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

SPEC = SamplerSpec(
    order=None,
    aliases=("DPM++ 2M SDE", "k_dpmpp_2m_sde"),
    spacing="exponential",
    skip_penultimate=("linspace", "leading"),
)


def sample(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, *, eta: float = 1.0
) -> Iterator[Step]:
    """eta: 0 is dpmpp_2m, 1 the reverse SDE of the forward process."""
    before: Tensor | None = None
    h_before = 0.0
    for now, after in pairwise(levels):
        x0 = denoise(x, now)
        h = after.half_log_snr - now.half_log_snr
        if after.sigma == 0:
            x = after.alpha * x0
        else:
            D = x0
            if before is not None:
                D = x0 + h / (2 * h_before) * (x0 - before)
            eta_h = eta * h if eta > 0 else 0.0  # 0 * inf is not a number
            x = after.sigma / now.sigma * math.exp(-eta_h) * x
            x = x - after.alpha * math.expm1(-h - eta_h) * D
            if eta > 0:
                x = x + after.sigma * math.sqrt(-math.expm1(-2 * eta_h)) * noise(x)
        before, h_before = x0, h
        yield Step(x, x0, after)
