"""DDIM, Song et al. 2021, "Denoising Diffusion Implicit Models", eq. 12 and 16.

    x' = alpha' x0 + sqrt(sigma'^2 - v) eps + sqrt(v) noise
    v = eta^2 (sigma'^2 / sigma^2) (sigma^2 - sigma'^2 alpha^2 / alpha'^2)

With eta = 0 all of the noise that is put back is the noise that was seen, and the same x always
gives the same picture. With eta = 1 this is DDPM.
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
    order=1, aliases=("DDIM", "k_ddim", "DDIMScheduler"), spacing="leading", ends_first=("leading",)
)


def sample(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, *, eta: float = 0.0
) -> Iterator[Step]:
    """eta: 0 (deterministic) to 1 (as much fresh noise as DDPM)."""
    for now, after in pairwise(levels):
        x0 = denoise(x, now)  # an estimate of the original picture
        eps = (x - now.alpha * x0) / now.sigma  # the noise that this estimate says is left
        kept = after.sigma * now.alpha / after.alpha  # how much of it x' would explain
        fresh = eta * after.sigma / now.sigma * max(now.sigma**2 - kept**2, 0) ** 0.5
        x = after.alpha * x0 + max(after.sigma**2 - fresh**2, 0) ** 0.5 * eps
        if fresh > 0:
            x = x + fresh * noise(x)
        yield Step(x, x0, after)
