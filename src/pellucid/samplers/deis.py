"""DEIS, Zhang & Chen 2023, eq. 14 and 15 ("tAB"), with polynomials in log s as in diffusers.

In s = sigma / alpha and y = x / alpha, dy/ds = eps. A polynomial in log s through the last slopes
is integrated:

    y' = y + sum_j eps_j integral from s to s' of prod_(k != j) log(u / s_k) / log(s_j / s_k) du

LMS does the same with polynomials in s. The steps from pure noise and to the clean picture, where
log s is infinite, are Euler's, and the last ones of a short run are of lower order, as in diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from numpy.polynomial import Polynomial

from pellucid.diffusion import Denoiser, eps_from_x0
from pellucid.samplers import Noise, SamplerSpec, Step
from pellucid.schedule import Level

if TYPE_CHECKING:
    from torch import Tensor

SPEC = SamplerSpec(
    order=2,
    aliases=("DEIS", "DEISMultistepScheduler"),
    skip_penultimate=("leading",),
    ends_first=("linspace", "leading", "trailing"),
)
SHORT = 15  # fewer steps than this are a short run


def sample(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, *, order: int = 2
) -> Iterator[Step]:
    """Deterministic; `noise` is not used.

    order: 1 (Euler) to 4, how many slopes are remembered; diffusers has 2, the paper's best is 3
    without guidance.
    """
    if not 1 <= order <= 4:
        raise ValueError(f"order must be from 1 to 4, got {order}")
    slopes: list[tuple[float, Tensor]] = []  # (s, eps), the newest first
    steps = len(levels) - 1
    for left, (now, after) in zip(range(steps, 0, -1), pairwise(levels), strict=True):
        x0 = denoise(x, now)
        eps = eps_from_x0(x, x0, now)
        if now.alpha == 0 or after.sigma == 0:
            x = after.alpha * x0 + after.sigma * eps
        else:
            slopes = [(now.s, eps), *slopes][: min(order, left) if steps < SHORT else order]
            at = [math.log(s / now.s) for s, _ in slopes]
            y = x / now.alpha
            for j, (_, slope) in enumerate(slopes):
                y = y + now.s * _weight(at, j, math.log(after.s / now.s)) * slope
            x = after.alpha * y
        yield Step(x, x0, after)


def _weight(at: list[float], j: int, end: float) -> float:
    """The integral from 0 to `end` of L(v) e^v, L being 1 at at[j] and 0 at the others."""
    others = [v for k, v in enumerate(at) if k != j]
    basis = Polynomial.fromroots(others) if others else Polynomial([1.0])
    inside, sign = Polynomial([0.0]), 1.0  # L e^v is the derivative of (L - L' + L'' - ...) e^v
    for k in range(len(others) + 1):
        inside, sign = inside + sign * (basis.deriv(k) if k else basis), -sign
    return float((inside(end) * math.exp(end) - inside(0.0)) / basis(at[j]))
