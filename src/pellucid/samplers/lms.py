"""Linear multistep (Adams-Bashforth), as in k-diffusion ("LMS").

In s = sigma / alpha and y = x / alpha, dy/ds = eps. A polynomial through the last slopes is
integrated:

    y' = y + sum_j eps_j integral from s to s' of prod_(k != j) (u - s_k) / (s_j - s_k) du
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from numpy.polynomial import Polynomial

from pellucid.diffusion import Denoiser, eps_from_x0
from pellucid.samplers import Noise, SamplerSpec, Step
from pellucid.schedule import Level

if TYPE_CHECKING:
    from torch import Tensor

SPEC = SamplerSpec(order=4, aliases=("LMS", "k_lms", "LMSDiscreteScheduler"))


def sample(
    denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise, *, order: int = 4
) -> Iterator[Step]:
    """Deterministic; `noise` is not used. order: 1 (Euler) to 4, how many slopes are remembered."""
    if not 1 <= order <= 4:
        raise ValueError(f"order must be from 1 to 4, got {order}")
    slopes: list[tuple[float, Tensor]] = []  # (s, eps), the newest first
    for now, after in pairwise(levels):
        x0 = denoise(x, now)
        eps = eps_from_x0(x, x0, now)
        if now.alpha == 0:  # s is infinite: Euler's step, and no polynomial goes through it
            x = after.alpha * x0 + after.sigma * eps
        else:
            slopes = [(now.s, eps), *slopes][:order]
            at = [s for s, _ in slopes]
            y = x / now.alpha
            for j, (_, slope) in enumerate(slopes):
                y = y + _weight(at, j, now.s, after.s) * slope
            x = after.alpha * y
        yield Step(x, x0, after)


def _weight(at: list[float], j: int, start: float, end: float) -> float:
    """The integral from `start` to `end` of the polynomial that is 1 at at[j], 0 at the others."""
    others = [s - start for k, s in enumerate(at) if k != j]
    basis = Polynomial.fromroots(others) if others else Polynomial([1.0])
    return float(basis.integ()(end - start) / basis(at[j] - start))
