"""Heun's second-order method on the probability-flow ODE, Karras et al. 2022, algorithm 1.

In s = sigma / alpha and y = x / alpha, dy/ds = eps. Take an Euler step, evaluate again there, and
step with the mean of the two slopes:

    y' = y + (s' - s) (eps + eps') / 2

Two evaluations for each step except from pure noise (s is infinite) and to the clean picture (eps'
is not known), which are Euler's.
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
    order=2, aliases=("Heun", "k_heun", "HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
)


def sample(denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """Deterministic; `noise` is not used."""
    for now, after in pairwise(levels):
        x0 = denoise(x, now)
        eps = eps_from_x0(x, x0, now)
        guess = after.alpha * x0 + after.sigma * eps
        if now.alpha > 0 and after.sigma > 0:
            eps_there = eps_from_x0(guess, denoise(guess, after), after)
            slope = (eps + eps_there) / 2
            x = after.alpha * (x / now.alpha + (after.s - now.s) * slope)
        else:
            x = guess
        yield Step(x, x0, after)
