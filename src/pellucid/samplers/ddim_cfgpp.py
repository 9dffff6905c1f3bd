"""DDIM with CFG++, Chung et al. 2024, algorithm 2.

Guidance moves the estimate of x0, but the noise that is put back is the unguided one, so that x
stays where noisy pictures are:

    x' = alpha' x0_guided + sigma' eps_uncond        x0_guided = x0_uncond + w (x0_cond - x0_uncond)

The scale w is from 0 to 1 here, not 5 or 7; 0.6 is a good start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from pellucid.diffusion import Denoiser, eps_from_x0
from pellucid.samplers import Noise, Step
from pellucid.schedule import Level

ORDER = 1
ALIASES = ("DDIM CFG++", "ddim_cfg++")
SPACING = "leading"
ENDS_FIRST = ("leading",)
GUIDANCE = 0.6  # where a request leaves the scale open; a model's own default is of the other kind


def sample(denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """Deterministic; `noise` is not used.

    denoise: as `guidance.ClassifierFree`, with a method parts(x, level) that has .guided and
    .uncond. A denoiser without it is not guided, and then this is DDIM.
    """
    parts_of = getattr(denoise, "parts", None)
    for now, after in pairwise(levels):
        if parts_of is None:
            x0 = unguided = denoise(x, now)
        else:
            parts = parts_of(x, now)
            x0, unguided = parts.guided, parts.uncond
        x = after.alpha * x0 + after.sigma * eps_from_x0(x, unguided, now)
        yield Step(x, x0, after)
