"""DPM-Solver++(2M) SDE, Lu et al. 2022; the Heun form of k-diffusion ("DPM++ 2M SDE Heun").

As dpmpp_2m_sde, but the straight line is integrated: with H = (1 + eta) h,

    x' = (sigma' / sigma) e^(-eta h) x + alpha' ((1 - e^-H) x0 + (1 - (1 - e^-H) / H) D)
         + sigma' sqrt(1 - e^(-2 eta h)) noise          D = (x0 - the x0 before) h / (the h before)
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
    aliases=("DPM++ 2M SDE Heun", "k_dpmpp_2m_sde_heun"),
    spacing="exponential",
    skip_penultimate=("linspace", "leading"),
)


def sample(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, *, eta: float = 1.0
) -> Iterator[Step]:
    """eta: 0 is deterministic and of second order, 1 the reverse SDE of the forward process."""
    before: Tensor | None = None
    h_before = 0.0
    for now, after in pairwise(levels):
        x0 = denoise(x, now)
        h = after.half_log_snr - now.half_log_snr
        if after.sigma == 0:
            x = after.alpha * x0
        else:
            eta_h = eta * h if eta > 0 else 0.0  # 0 * inf is not a number
            whole = -math.expm1(-h - eta_h)
            D = whole * x0
            if before is not None:
                D = D + (1 - whole / (h + eta_h)) * h / h_before * (x0 - before)
            x = after.sigma / now.sigma * math.exp(-eta_h) * x + after.alpha * D
            if eta > 0:
                x = x + after.sigma * math.sqrt(-math.expm1(-2 * eta_h)) * noise(x)
        before, h_before = x0, h
        yield Step(x, x0, after)
