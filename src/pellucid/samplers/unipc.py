"""UniPC of order 2 with B(h) = e^h - 1, Zhao et al. 2023, in its form that predicts x0.

The predictor is that of dpmpp_2m. The estimate of x0 at the new place also corrects the step
that led there, at no extra evaluation. With lambda =
log(alpha / sigma), h = lambda' - lambda and r = (the lambda before - lambda) / h, the corrected
step from x is

    x' = (sigma' / sigma) x + alpha' (1 - e^-h) (x0 + a (x0 before - x0) / r + b (x0' - x0))
    a + b = b1     a r + b = b2      (the first step: a = 0, b = 1/2)

where b1 and b2 make it exact for x0 that is linear and quadratic in lambda.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from pellucid.diffusion import Denoiser
from pellucid.samplers import Noise, SamplerSpec, Step
from pellucid.schedule import Level

if TYPE_CHECKING:
    from torch import Tensor

SPEC = SamplerSpec(
    order=3,
    aliases=("UniPC", "uni_pc", "uni_pc_bh2", "UniPCMultistepScheduler"),
    skip_penultimate=("linspace", "leading"),
)


class _Estimate(NamedTuple):
    """Where the network was evaluated, and its estimate."""

    x: Tensor
    x0: Tensor
    level: Level


def sample(denoise: Denoiser, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[Step]:
    """Deterministic; `noise` is not used."""
    history: list[_Estimate] = []  # the newest first, at most two
    for now, after in pairwise(levels):
        x0 = denoise(x, now)
        if history:
            x = _correct(history, x0, now)
        history = [_Estimate(x, x0, now), *history][:2]
        x = _predict(history, after)
        yield Step(x, x0, after)


def _step(last: _Estimate, after: Level, estimate: Tensor) -> Tensor:
    ratio = after.sigma / last.level.sigma
    return ratio * last.x + (after.alpha - last.level.alpha * ratio) * estimate


def _h(level: Level, after: Level) -> float:
    return after.half_log_snr - level.half_log_snr


def _predict(history: list[_Estimate], after: Level) -> Tensor:
    estimate = history[0].x0
    if len(history) == 2 and after.sigma > 0:  # the last step is of first order
        share = _h(history[0].level, after) / (2 * _h(history[1].level, history[0].level))
        estimate = estimate + share * (estimate - history[1].x0)
    return _step(history[0], after, estimate)


def _correct(history: list[_Estimate], x0_there: Tensor, there: Level) -> Tensor:
    x0 = history[0].x0
    if len(history) == 1:
        return _step(history[0], there, x0 + 0.5 * (x0_there - x0))
    h = _h(history[0].level, there)
    whole = math.expm1(-h)
    phi2 = whole / -h - 1
    phi3 = phi2 / -h - 0.5
    b1, b2 = phi2 / whole, 2 * phi3 / whole
    r = -_h(history[1].level, history[0].level) / h  # -inf after pure noise, and then a = 0
    a = (b1 - b2) / (1 - r)
    estimate = x0 + a / r * (history[1].x0 - x0) + (b1 - a) * (x0_there - x0)
    return _step(history[0], there, estimate)
