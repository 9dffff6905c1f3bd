"""PLMS, Liu et al. 2022, "Pseudo Numerical Methods", eq. 11 and 12; Stable Diffusion's first sampler.

DDIM's step, with a mean of the last estimates of the noise instead of the last one:

    e = (55 eps - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24
    x' = alpha' (x - sigma e) / alpha + sigma' e

The first step also evaluates its end point and averages; the next two use the available history.
The weights are those of equal steps in t, for any spacing.
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
    order=2,
    aliases=("PLMS", "k_plms", "PNDM", "PNDMScheduler"),
    spacing="leading",
    ends_first=("leading",),
)
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def sample(denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """Deterministic; `noise` is not used."""
    slopes: list[Tensor] = []  # the newest first
    for now, after in pairwise(levels):
        x0 = denoise(x, now)
        eps = eps_from_x0(x, x0, now)
        if now.alpha == 0:  # the noise says nothing of x0 there: Euler's step
            x = after.alpha * x0 + after.sigma * eps
        else:
            slopes = [eps, *slopes][:4]
            if len(slopes) == 1 and after.sigma > 0:
                guess = after.alpha * x0 + after.sigma * eps
                mean = (eps + eps_from_x0(guess, denoise(guess, after), after)) / 2
            else:
                weights = ADAMS_BASHFORTH[len(slopes) - 1]
                mean = sum((w * e for w, e in zip(weights, slopes, strict=True)), 0 * eps)
            x = after.alpha / now.alpha * (x - now.sigma * mean) + after.sigma * mean
        yield Step(x, x0, after)
