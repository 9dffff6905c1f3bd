"""Euler ancestral, k-diffusion ("Euler a"): step below the next level, then add noise to reach it.

With s = sigma / alpha,

    up = min(s', eta s' sqrt(1 - s'^2 / s^2))     down = sqrt(s'^2 - up^2)
    x' = alpha' (x0 + down eps + up noise)

which for eta <= 1 is DDIM with the same eta, in other letters.
"""

from __future__ import annotations

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
        "Euler a",
        "Euler ancestral",
        "euler_a",
        "k_euler_a",
        "k_euler_ancestral",
        "EulerAncestralDiscreteScheduler",
    ),
)


def sample(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, *, eta: float = 1.0
) -> Iterator[Step]:
    """eta: how much of the noise is fresh; 0 is Euler."""
    for now, after in pairwise(levels):
        x0 = denoise(x, now)
        down, up = ancestral(now.s, after.s, eta)
        x = after.alpha * (x0 + down * eps_from_x0(x, x0, now))
        if up > 0:
            x = x + after.alpha * up * noise(x)
        yield Step(x, x0, after)
