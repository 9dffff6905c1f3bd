"""DPM-Solver-12/23, Lu et al. 2022, algorithm 3 and appendix C, as in k-diffusion ("DPM adaptive").

A step of third order (see dpm_fast) has one of second order in it, at no extra evaluation:

    y_low = y - s' (e^h - 1) (eps + 3/2 (eps1 - eps))

The step is accepted or retried depending on the difference, and the next one is made longer or
shorter: h = h (1 + arctan(E^(-1/order) - 1)), E the root mean square of (y - y_low) / tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pellucid.diffusion import Denoiser, eps_from_x0
from pellucid.samplers import Noise, SamplerSpec, Step, ancestral, euler
from pellucid.samplers.dpm_fast import solve
from pellucid.schedule import Level

if TYPE_CHECKING:
    from torch import Tensor

SPEC = SamplerSpec(
    order=None, aliases=("DPM adaptive", "k_dpm_ad", "k_dpm_adaptive"), adaptive=True
)
FIRST_H, ACCEPT = 0.05, 0.81
MOST_TRIES = 1000


def sample(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    *,
    eta: float = 1.0,
    rtol: float = 0.05,
    atol: float = 0.0078,
) -> Iterator[Step]:
    """As many evaluations as it takes. It yields once for each of `levels` that it has passed.

    The whole batch takes the same steps. eta: how much of the noise is fresh (A1111: 1); 0 is
    deterministic. rtol, atol: a step may be off by the greater of atol and rtol |x|. The steps from
    pure noise and to the clean picture are Euler's; A1111 stops before the latter.
    """
    ends = list(levels)
    if ends[0].alpha == 0 or len(ends) == 2:
        for step in euler.sample(denoise, x, ends[:2], noise):
            x = step.x
            yield step
        ends = ends[1:]
    clean = ends.pop() if len(ends) > 1 and ends[-1].sigma == 0 else None
    now, end, due = ends[0], ends[-1], [level.s for level in ends[1:]]
    h, tries, low_before = FIRST_H, 0, x / now.alpha
    while due:
        s = now.s * math.exp(-h)
        after = end if s <= end.s * math.exp(1e-5) else now.at(s)
        down = max(ancestral(now.s, after.s, eta)[0], end.s)
        below = after if down == after.s else after.at(down)
        one, two, step = solve(denoise, x, now, below, 3)
        eps = eps_from_x0(x, one.x0, now)
        d_eps = eps_from_x0(one.x, two.x0, one.level) - eps
        low = x / now.alpha - below.s * (now.s / below.s - 1) * (eps + 1.5 * d_eps)
        y = step.x / below.alpha
        allowed = (rtol * low.abs().maximum(low_before.abs())).clamp(min=atol)
        error = ((low - y) / allowed).square().mean().sqrt().item()
        tries += 1
        if math.isfinite(error) and tries < MOST_TRIES:
            factor = 1 + math.atan((error + 1e-8) ** (-1 / (1.5 if eta > 0 else 3)) - 1)
        else:
            factor = math.inf  # no smaller step helps: take it, and then all that is left
        h *= factor
        if factor >= ACCEPT:
            if down < after.s:
                y = y + (after.s**2 - down**2) ** 0.5 * noise(x)
            x, now, low_before = after.alpha * y, after, low
            while due and now.s <= due[0]:
                yield Step(x, one.x0, now)
                del due[0]
    if clean is not None:
        yield from euler.sample(denoise, x, [end, clean], noise)
