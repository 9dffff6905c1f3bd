"""DPM-Solver++(3M) SDE of k-diffusion: x0 is continued along a parabola, on the SDE.

With lambda = log(alpha / sigma), h = lambda' - lambda, r0 and r1 the two h before by this h, and
H = (1 + eta) h,

    a = (x0 - x0 before) / r0     b = (x0 before - the one before that) / r1
    D1 = a + (a - b) r0 / (r0 + r1)     D2 = (a - b) / (r0 + r1)
    p2 = 1 - (1 - e^-H) / H     p3 = p2 / H - 1/2
    x' = (sigma' / sigma) e^(-eta h) x + alpha' ((1 - e^-H) x0 + p2 D1 - p3 D2)
         + sigma' sqrt(1 - e^(-2 eta h)) noise

The exact weight of D2 is twice p3; this is k-diffusion's. With eta = 0 the order is 2 and not 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from pellucid.diffusion import Denoiser
from pellucid.samplers import Noise, SamplerSpec, Step
from pellucid.schedule import SPACINGS, Level

if TYPE_CHECKING:
    from torch import Tensor

SPEC = SamplerSpec(
    order=None,
    aliases=("DPM++ 3M SDE", "k_dpmpp_3m_sde"),
    spacing="exponential",
    skip_penultimate=SPACINGS,
)


def sample(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, *, eta: float = 1.0
) -> Iterator[Step]:
    """eta: 0 is deterministic, 1 the reverse SDE of the forward process."""
    history: list[tuple[float, Tensor]] = []  # (the h that followed, x0), the newest first
    for now, after in pairwise(levels):
        x0 = denoise(x, now)
        h = after.half_log_snr - now.half_log_snr
        if after.sigma == 0:
            x = after.alpha * x0
        else:
            eta_h = eta * h if eta > 0 else 0.0  # 0 * inf is not a number
            whole = -math.expm1(-h - eta_h)
            p2 = 1 - whole / (h + eta_h)
            D = whole * x0
            if history:
                D1 = h / history[0][0] * (x0 - history[0][1])
                if len(history) == 2:
                    (h0, near), (h1, far) = history
                    D2 = D1 - h / h1 * (near - far)
                    D = D - (p2 / (h + eta_h) - 0.5) / ((h0 + h1) / h) * D2
                    D1 = D1 + (h0 / (h0 + h1) if h1 < math.inf else 0.0) * D2
                D = D + p2 * D1
            x = after.sigma / now.sigma * math.exp(-eta_h) * x + after.alpha * D
            if eta > 0:
                x = x + after.sigma * math.sqrt(-math.expm1(-2 * eta_h)) * noise(x)
        history = [(h, x0), *history][:2]
        yield Step(x, x0, after)
