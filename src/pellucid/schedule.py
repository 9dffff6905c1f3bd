"""Noise schedules: how much picture and how much noise there is at every time.

A noisy picture is ``x = alpha * x0 + sigma * eps``. A `Schedule` tells alpha and sigma for every t;
`Schedule.levels` picks the few t that a sampler visits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pellucid.plugins import choose

SCHEDULES = ("linear", "scaled_linear", "cosine", "sigmoid", "laplace", "flow")
SPACINGS = (
    "leading",
    "trailing",
    "linspace",
    "uniform",
    "karras",
    "exponential",
    "beta",
    "align_your_steps",
    "align_your_steps_xl",
)
MAX_STEPS = 1000
# Karras et al. 2022 (EDM) go from s = 80 to 0.002. A schedule whose own range is wider, or
# infinite, is ramped over this range only; its first level is the schedule's noisiest all the same.
NOISIEST, CLEANEST = 80.0, 0.002
# Sabour et al. 2024, "Align Your Steps": s = sigma / alpha of the ten steps; the last becomes 0.
ALIGN_YOUR_STEPS = {
    "align_your_steps": (
        *(14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    ),
    "align_your_steps_xl": (
        *(14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    ),
}


@dataclass(frozen=True)
class Level:
    """A point on a schedule: x = alpha * x0 + sigma * eps, and the network is told t."""

    alpha: float
    sigma: float
    t: float

    @property
    def log_snr_half(self) -> float:
        """log(alpha / sigma), the lambda of DPM-Solver. inf if sigma is 0, -inf if alpha is 0."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha > 0 else -math.inf

    @property
    def s(self) -> float:
        """sigma / alpha, what k-diffusion and EDM call sigma. inf if alpha is 0."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf


CLEAN = Level(1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Schedule:
    """alpha and sigma as functions of t.

    Every name but "flow" is variance preserving, alpha^2 + sigma^2 = 1, with T discrete times
    0 .. T-1; the betas are used by "linear" (Ho et al. 2020: beta_start=1e-4, beta_end=0.02) and
    "scaled_linear" (Stable Diffusion; the original code calls it linear). "flow" is rectified flow
    (Liu et al. 2022): u = t / T in [0, 1], alpha = 1 - u, sigma = u.

    zero_terminal_snr: the last level is made pure noise (Lin et al. 2023, algorithm 1).
    shift: of "flow" only, > 0; above 1 a run spends more of its steps at high noise (Esser et al.
    2024, eq. 23). It moves the levels of a run, not the meaning of t.
    Raises ValueError: unknown name, T < 2, betas not in (0, 1) or falling, shift not positive.
    """

    name: str = "scaled_linear"
    T: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    zero_terminal_snr: bool = False
    shift: float = 1.0

    def __post_init__(self) -> None:
        choose(self.name, SCHEDULES, "schedule")
        if self.T < 2:
            raise ValueError(f"T is {self.T}; a schedule needs at least 2 times")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"beta_start {self.beta_start} and beta_end {self.beta_end} are wrong; "
                "0 < beta_start <= beta_end < 1 is wanted"
            )
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift is {self.shift}; a positive number is wanted")
        if self.shift != 1 and self.name != "flow":
            raise ValueError(f"shift is for the schedule 'flow' and not for {self.name!r}")

    @property
    def alphas_cumprod(self) -> Tensor:
        """(T,) float64, alpha^2 at every whole t. ValueError for "flow", which has no betas."""
        if self.name == "flow":
            raise ValueError("the schedule 'flow' has no alphas_cumprod; use alpha_sigma(t)")
        return _alphas_cumprod(self)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at times t, fractional or not, clamped to the schedule's range.

        The results have t's shape and device, and its dtype if that is floating point, else
        float32.
        """
        dtype = t.dtype if t.is_floating_point() else torch.float32
        if self.name == "flow":
            u = (t.to(dtype) / self.T).clamp(0, 1)
            return 1 - u, u
        t = t.to(torch.float64).clamp(0, self.T - 1)
        below = t.floor().long().clamp(max=self.T - 2)
        part = t - below
        log_s = _log_s(self).to(t.device)
        # Linear in log(sigma / alpha) between whole times, as in k-diffusion.
        at = torch.lerp(log_s[below], log_s[below + 1], part)
        alpha, sigma = torch.sigmoid(-2 * at).sqrt(), torch.sigmoid(2 * at).sqrt()
        last = (t == self.T - 1) & (self.alphas_cumprod[-1].item() == 0)
        alpha, sigma = alpha.masked_fill(last, 0), sigma.masked_fill(last, 1)
        return alpha.to(dtype), sigma.to(dtype)

    def level(self, t: float) -> Level:
        """The level at time t, 0 .. T-1 (flow: 0 .. T), fractional allowed."""
        top = self.T if self.name == "flow" else self.T - 1
        if not 0 <= t <= top:
            raise ValueError(f"t is {t}; this schedule goes from 0 to {top}")
        alpha, sigma = self.alpha_sigma(torch.tensor(t, dtype=torch.float64))
        return Level(alpha.item(), sigma.item(), float(t))

    def level_at_sigma(self, s: float) -> Level:
        """The level with sigma / alpha = s >= 0; t is fractional, and log s is linear in it.

        Outside of the schedule's own range the nearest t is told to the network, but s is kept.
        """
        if not s >= 0:
            raise ValueError(f"sigma is {s}; a number that is not negative is wanted")
        if self.name == "flow":
            u = s / (1 + s) if s < math.inf else 1.0
            return Level(1 - u, u, self.T * u)
        if s == 0:
            return CLEAN
        if s == math.inf:
            return Level(0.0, 1.0, float(self.T - 1))
        log_s = _log_s(self).numpy()
        t = float(np.interp(math.log(s), log_s, np.arange(self.T)))
        return Level(1 / math.hypot(1, s), s / math.hypot(1, s), t)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The least and the greatest s = sigma / alpha of a run; the latter may be inf."""
        if self.name == "flow":
            return CLEANEST, math.inf
        return self.level(0).s, self.level(self.T - 1).s

    def levels(self, steps: int, spacing: str = "leading", final: str = "clean") -> list[Level]:
        """The steps + 1 levels of a run, from the noisiest to the last.

        Spacings, all but the first three with fractional t:
            leading     t = 1, 1 + T//steps, ... (DDIM and Stable Diffusion); not for flow
            trailing    t = T-1, T-1 - T/steps, ... (Lin et al. 2023), rounded
            linspace    T-1 .. 0 evenly, rounded (Nichol & Dhariwal 2021); flow: T .. 1, not rounded
            uniform     T-1 .. 0 evenly, not rounded (k-diffusion); flow: equal steps from T to 0
            karras      s^(1/7) evenly (Karras et al. 2022, eq. 5)
            exponential log s evenly
            beta        quantiles of Beta(0.6, 0.6) (Lee et al. 2024)
            align_your_steps, align_your_steps_xl   the tables for SD1.5 and SDXL (Sabour et al.
                        2024), log s interpolated if steps is not 10; not for flow

        final: "clean" ends at x0 itself; "first" ends at t = 0, which still has a little noise
        (the original Stable Diffusion code; diffusers' set_alpha_to_one=False).
        Raises ValueError: unknown name, steps not in 1 .. 1000 (or T, where t is rounded), a
        spacing that says nothing about this schedule.
        """
        choose(spacing, SPACINGS, "spacing")
        choose(final, ("clean", "first"), "final level")
        rounded = spacing in ("leading", "trailing", "linspace") and self.name != "flow"
        most = min(self.T, MAX_STEPS) if rounded else MAX_STEPS
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= most:
            raise ValueError(f"steps is {steps}; a whole number from 1 to {most} is wanted")
        make = self._flow_levels if self.name == "flow" else self._vp_levels
        end = CLEAN if final == "clean" else self.level(0)
        return [*make(steps, spacing), end]

    def _vp_levels(self, steps: int, spacing: str) -> list[Level]:
        top = self.T - 1
        if spacing in ("karras", "exponential", "align_your_steps", "align_your_steps_xl"):
            low, high = self.sigma_range
            return self._ramp(steps, spacing, low, high)
        if spacing == "leading":
            ratio = self.T // steps
            offset = min(1, top - (steps - 1) * ratio)  # Stable Diffusion's steps_offset
            times = np.arange(steps)[::-1] * float(ratio) + offset
        elif spacing == "trailing":
            times = np.round(self.T - np.arange(steps) * (self.T / steps)) - 1
        elif spacing == "linspace":
            times = np.round(np.linspace(0, top, steps))[::-1] if steps > 1 else np.array([top])
        elif spacing == "uniform":
            times = np.linspace(top, 0, steps)
        else:
            times = top * beta_quantile(1 - np.arange(steps) / steps)
        return [self.level(float(t)) for t in times]

    def _flow_levels(self, steps: int, spacing: str) -> list[Level]:
        if spacing == "leading" or spacing.startswith("align"):
            raise ValueError(
                f"the spacing {spacing!r} does not reach pure noise, where the schedule 'flow' "
                "starts; choose uniform, trailing, linspace, karras, exponential or beta"
            )
        if spacing in ("karras", "exponential"):
            low, high = self.sigma_range
            return self._ramp(steps, spacing, low, high)
        if spacing == "linspace":
            times = np.linspace(1, 1 / self.T, steps)
        elif spacing == "beta":
            times = beta_quantile(1 - np.arange(steps) / steps)
        else:
            times = 1 - np.arange(steps) / steps
        times = self.shift * times / (1 + (self.shift - 1) * times)
        return [Level(1 - u, u, self.T * u) for u in map(float, times)]

    def _ramp(self, steps: int, spacing: str, low: float, high: float) -> list[Level]:
        """Levels whose s = sigma / alpha goes from `high` to `low`; the first is the noisiest."""
        first = self.level(self.T if self.name == "flow" else self.T - 1)
        low, high = max(low, CLEANEST), min(high, NOISIEST)
        if spacing in ALIGN_YOUR_STEPS:
            table = np.log(ALIGN_YOUR_STEPS[spacing])
            at = np.linspace(0, len(table) - 1, steps + 1)[:-1]
            ramp = np.exp(np.interp(at, np.arange(len(table)), table))
            return [self.level_at_sigma(float(s)) for s in ramp]
        to, back = _POWERS[spacing]
        ramp = self.shift * back(np.linspace(to(high), to(low), steps))  # the shift multiplies s
        return [first, *(self.level_at_sigma(float(s)) for s in ramp[1:])]


_POWERS: dict[str, tuple[Callable, Callable]] = {
    "karras": (lambda s: s ** (1 / 7), lambda y: y**7),
    "exponential": (np.log, np.exp),
}


def beta_quantile(p: np.ndarray) -> np.ndarray:
    """The x with P(X <= x) = p for X ~ Beta(0.6, 0.6), to about 1e-7.

    With y = x^0.6 the density x^-0.4 (1-x)^-0.4 dx becomes (1-x)^-0.4 dy / 0.6, which is smooth on
    the lower half; the upper half is its mirror image.
    """
    y = np.linspace(0, 0.5**0.6, 4001)
    density = (1 - y ** (1 / 0.6)) ** -0.4
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    low = np.minimum(p, 1 - p)
    x = np.interp(low, 0.5 * mass / mass[-1], y) ** (1 / 0.6)
    return np.where(p <= 0.5, x, 1 - x)


@lru_cache(maxsize=32)
def _alphas_cumprod(schedule: Schedule) -> Tensor:
    T = schedule.T
    if schedule.name in ("linear", "scaled_linear"):
        power = 1.0 if schedule.name == "linear" else 2.0
        ends = schedule.beta_start ** (1 / power), schedule.beta_end ** (1 / power)
        betas = torch.linspace(*ends, T, dtype=torch.float64) ** power
        products = torch.cumprod(1 - betas, 0)
    elif schedule.name == "laplace":
        # Hang et al. 2024, "Improved Noise Schedule", mu = 0, b = 0.5: log SNR is Laplace
        # distributed.
        u = (torch.arange(T, dtype=torch.float64) + 0.5) / T
        log_snr = -0.5 * torch.sign(0.5 - u) * torch.log(1 - 2 * (u - 0.5).abs())
        products = torch.sigmoid(log_snr)
    else:
        u = torch.arange(T + 1, dtype=torch.float64) / T
        if schedule.name == "cosine":  # Nichol & Dhariwal 2021, eq. 17
            curve = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        else:  # Jabri et al. 2022, "Scalable Adaptive Computation", from -3 to 3
            curve = torch.sigmoid(torch.tensor(3.0, dtype=u.dtype)) - torch.sigmoid(6 * u - 3)
        betas = (1 - curve[1:] / curve[:-1]).clamp(max=0.999)
        products = torch.cumprod(1 - betas, 0)
    if schedule.zero_terminal_snr:
        alpha = products.sqrt()
        alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
        products = alpha**2
    return products


@lru_cache(maxsize=32)
def _log_s(schedule: Schedule) -> Tensor:
    """log(sigma / alpha) at every whole t, rising."""
    products = schedule.alphas_cumprod
    log_s = 0.5 * (torch.log1p(-products) - torch.log(products))
    if products[-1] == 0:  # between the last two times go on at the slope before; the end is exact
        log_s[-1] = 2 * log_s[-2] - log_s[-3]
    return log_s
