"""DPM-Solver++(2M), Lu et al. 2022, algorithm 2: x0 is carried on in a straight line.

With lambda = log(alpha / sigma), h = lambda' - lambda, and r = (the h before) / h,

    D = x0 + (x0 - the x0 before) / (2 r)
    x' = (sigma' / sigma) x + alpha' (1 - e^-h) D          alpha' e^-h = alpha sigma' / sigma

The first step has no x0 before and the step to sigma = 0 has no finite h: they use D = x0.
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

SPEC = SamplerSpec(
    order=2,
    aliases=("DPM++ 2M", "k_dpmpp_2m", "DPMSolverMultistepScheduler"),
    spacing="karras",
    skip_penultimate=("linspace", "leading"),
)


def sample(denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """Deterministic; `noise` is not used."""
    before: Tensor | None = None
    h_before = 0.0
    for now, after in pairwise(levels):
        x0 = denoise(x, now)
        h = after.half_log_snr - now.half_log_snr
        carried = x0
        if before is not None and after.sigma > 0:
            carried = x0 + h / (2 * h_before) * (x0 - before)  # h_before is inf after pure noise
        ratio = after.sigma / now.sigma
        x = ratio * x + (after.alpha - now.alpha * ratio) * carried
        before, h_before = x0, h
        yield Step(x, x0, after)
