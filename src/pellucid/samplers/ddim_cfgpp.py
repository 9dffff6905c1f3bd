"""DDIM with CFG++, Chung et al. 2024, algorithm 2.

Guidance moves the estimate of x0, but the noise that is put back is the unguided one, so that x
stays where noisy pictures are:

    x' = alpha' x0_guided + sigma' eps_uncond        x0_guided = x0_uncond + w (x0_cond - x0_uncond)

The scale w is from 0 to 1 here, not 5 or 7; 0.6 is a good start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from pellucid.diffusion import eps_from_x0
from pellucid.samplers import Noise, SamplerSpec, Step
from pellucid.schedule import Level

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.guidance import GuidedDenoiser

SPEC = SamplerSpec(
    order=1,
    aliases=("DDIM CFG++", "ddim_cfg++", "euler_cfg_pp"),
    spacing="leading",
    ends_first=("leading",),
    guidance=0.6,  # a model's own default is of the other kind
    guided=True,
)


def sample(
    denoise: GuidedDenoiser, x: Tensor, levels: Sequence[Level], noise: Noise
) -> Iterator[Step]:
    """Deterministic; `noise` is not used. Without guidance this is DDIM."""
    for now, after in pairwise(levels):
        x0, _, unguided = denoise(x, now)
        x = after.alpha * x0 + after.sigma * eps_from_x0(x, unguided, now)
        yield Step(x, x0, after)
