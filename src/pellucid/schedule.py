"""Noise schedules: how much picture and how much noise there is at every time.

A noisy picture is ``x = alpha * x0 + sigma * eps``. A `Schedule` gives alpha and sigma for every t;
`Schedule.levels` picks the few t that a sampler visits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pellucid.plugins import choose

if TYPE_CHECKING:
    from torch import Tensor

SCHEDULES = ("linear", "scaled_linear", "cosine", "sigmoid", "laplace", "flow")
BETAS = ("linear", "scaled_linear")  # those that beta_start and beta_end make
SPACINGS = (
    "leading",
    "trailing",
    "linspace",
    "uniform",
    "sgm_uniform",
    "simple",
    "karras",
    "exponential",
    "kl_optimal",
    "beta",
    "beta_time",
    "align_your_steps",
    "align_your_steps_xl",
    "lcm",
    "ddim",
)
# Names of other programs for the same thing.
SPACING_ALIASES = {
    "normal": "uniform",
    "polyexponential": "exponential",  # with rho = 1, as k-diffusion and A1111 have it
    "ddim_uniform": "ddim",
    "turbo": "trailing",
    "sgmuniform": "sgm_uniform",
    "ays": "align_your_steps",
    "ays_xl": "align_your_steps_xl",
}
MAX_STEPS = 1000
LCM_TIMES = 50
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
    """A point on a schedule: x = alpha * x0 + sigma * eps, and t for the network."""

    alpha: float
    sigma: float
    t: float
    schedule: Schedule | None = field(default=None, repr=False, compare=False)

    def at(self, s: float) -> Level:
        """The level of the same schedule with sigma / alpha = s, for evaluations between levels."""
        if self.schedule is None:
            raise ValueError(f"{self} belongs to no schedule; make it with Schedule.level")
        return self.schedule.level_at_s(s)

    @property
    def half_log_snr(self) -> float:
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
                "the betas must be 0 < beta_start <= beta_end < 1, got beta_start "
                f"{self.beta_start} and beta_end {self.beta_end}"
            )
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift must be a positive number, got {self.shift}")
        if self.shift != 1 and self.name != "flow":
            raise ValueError(f"shift is for the schedule 'flow' and not for {self.name!r}")

    @property
    def last_t(self) -> int:
        """The noisiest t: T for "flow", else T - 1."""
        return self.T if self.name == "flow" else self.T - 1

    @property
    def alphas_cumprod(self) -> Tensor:
        """(T,) float64, alpha^2 at every whole t. ValueError for "flow", which has no betas."""
        if self.name == "flow":
            raise ValueError("the schedule 'flow' has no alphas_cumprod; use alpha_sigma(t)")
        return _alphas_cumprod(self).clone()

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at times t, fractional or not, clamped to the schedule's range.

        The results have t's shape and device, and its dtype if that is floating point, else
        float32.
        """
        import torch

        dtype = t.dtype if t.is_floating_point() else torch.float32
        if self.name == "flow":
            u = (t.to(dtype) / self.T).clamp(0, 1)
            return 1 - u, u
        device = t.device
        # MPS has no float64.
        t = t.to("cpu" if device.type == "mps" else device, torch.float64).clamp(0, self.T - 1)
        below = t.floor().long().clamp(max=self.T - 2)
        part = t - below
        log_s = _log_s(self).to(t.device)
        # Linear in log(sigma / alpha) between whole times, as in k-diffusion.
        at = torch.lerp(log_s[below], log_s[below + 1], part)
        alpha, sigma = torch.sigmoid(-2 * at).sqrt(), torch.sigmoid(2 * at).sqrt()
        last = (t == self.T - 1) & (_alphas_cumprod(self)[-1].item() == 0)
        alpha, sigma = alpha.masked_fill(last, 0), sigma.masked_fill(last, 1)
        return alpha.to(dtype).to(device), sigma.to(dtype).to(device)

    def level(self, t: float) -> Level:
        """The level at time t, 0 .. T-1 (flow: 0 .. T), fractional allowed."""
        import torch

        if not 0 <= t <= self.last_t:
            raise ValueError(f"t is {t}; this schedule goes from 0 to {self.last_t}")
        alpha, sigma = self.alpha_sigma(torch.tensor(t, dtype=torch.float64))
        return Level(alpha.item(), sigma.item(), float(t), self)

    def level_at_s(self, s: float) -> Level:
        """The level with sigma / alpha = s >= 0; t is fractional, and log s is linear in it.

        Outside of the schedule's own range the network gets the nearest t, but s is kept.
        """
        if not s >= 0:
            raise ValueError(f"s must not be negative, got {s}")
        if self.name == "flow":
            u = s / (1 + s) if s < math.inf else 1.0
            return Level(1 - u, u, self.T * u, self)
        if s == 0:
            return CLEAN
        if s == math.inf:
            return Level(0.0, 1.0, float(self.T - 1), self)
        log_s = _log_s(self).numpy()
        t = float(np.interp(math.log(s), log_s, np.arange(self.T)))
        return Level(1 / math.hypot(1, s), s / math.hypot(1, s), t, self)

    @property
    def s_range(self) -> tuple[float, float]:
        """The least and the greatest s = sigma / alpha of a run; the latter may be inf."""
        if self.name == "flow":
            return CLEANEST, math.inf
        return self.level(0).s, self.level(self.T - 1).s

    def levels(
        self,
        steps: int,
        spacing: str = "leading",
        final: str = "clean",
        *,
        skip_penultimate: bool = False,
    ) -> list[Level]:
        """The steps + 1 levels of a run, from the noisiest to the last.

        Spacings, of which leading, ddim, trailing, linspace, simple and lcm have whole t:
            leading     t = 1, 1 + T//steps, ... (DDIM and Stable Diffusion); not for flow
            ddim        the same, as in A1111 and ComfyUI; "leading" is as diffusers does it in each
                        sampler; not for flow
            trailing    t = T-1, T-1 - T/steps, ... (Lin et al. 2023), rounded
            simple      the same, rounded upwards (ComfyUI, A1111)
            linspace    T-1 .. 0 evenly, rounded (Nichol & Dhariwal 2021); flow: SD3's own, T to the
                        shifted time 1, not rounded (diffusers' FlowMatchEulerDiscreteScheduler)
            uniform     T-1 .. 0 evenly, not rounded (k-diffusion); flow: equal steps from T to 0
            sgm_uniform the same of one step more, of which the last is left out
            karras      s^(1/7) evenly (Karras et al. 2022, eq. 5)
            exponential log s evenly
            kl_optimal  arctan s evenly (Sabour et al. 2024, KL-optimal for Gaussian data)
            beta        s, or of flow t, at quantiles of Beta(0.6, 0.6) (A1111, diffusers)
            beta_time   t at these quantiles (Lee et al. 2024; ComfyUI)
            align_your_steps, align_your_steps_xl   the tables for SD1.5 and SDXL (Sabour et al.
                        2024), log s interpolated if steps is not 10; not for flow
            lcm         of the 50 times at which the teacher of a latent consistency model was evaluated,
                        T-1, T-1 - T/50, ... (Luo et al. 2023)
        The names in SPACING_ALIASES mean one of these.

        final: "clean" ends at x0 itself; "first" ends at t = 0, which still has a little noise
        (the original Stable Diffusion code; diffusers' set_alpha_to_one=False).
        skip_penultimate: the levels of a run of one step more, but its last but one is left out.
        Raises ValueError: unknown name, steps not in 1 .. 1000 (or T, where t is whole, or 50), a
        spacing that this schedule does not have.
        """
        spacing = spacing_named(spacing)
        choose(final, ("clean", "first"), "final level")
        # Where the last step is t = 0 already, "first" needs one level more on the way.
        more = skip_penultimate + (final == "first" and spacing in _REACH_FIRST)
        most = MAX_STEPS
        if spacing == "lcm":
            most = min(self.T, LCM_TIMES) - more
        elif spacing in _WHOLE and self.name != "flow":
            most = min(self.T, MAX_STEPS) - more
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= most:
            raise ValueError(f"steps must be a whole number from 1 to {most}, got {steps}")
        make = self._flow_levels if self.name == "flow" else self._vp_levels
        end = CLEAN if final == "clean" else self.level(0)
        levels = make(steps + more, spacing)[:steps]
        if final == "first" and levels[-1].s <= end.s:
            raise ValueError(
                f"steps is {steps}; the spacing {spacing!r} then reaches t = 0 before its last step"
            )
        return [*levels, end]

    def _vp_levels(self, steps: int, spacing: str) -> list[Level]:
        top = self.T - 1
        i = np.arange(steps)
        if spacing in _DDIM:
            ratio = self.T // steps
            offset = min(1, top - (steps - 1) * ratio)  # Stable Diffusion's steps_offset
            times = i[::-1] * float(ratio) + offset
        elif spacing == "trailing":
            times = np.round(self.T - i * (self.T / steps)) - 1
        elif spacing == "simple":
            times = top - np.floor(i * (self.T / steps))
        elif spacing == "linspace":
            times = np.round(np.linspace(0, top, steps))[::-1] if steps > 1 else np.array([top])
        elif spacing == "uniform":
            times = np.linspace(top, 0, steps)
        elif spacing == "sgm_uniform":
            times = np.linspace(top, 0, steps + 1)[:-1]
        elif spacing == "beta_time":
            times = top * beta_quantile(1 - i / steps)
        elif spacing == "lcm":
            times = top - self._lcm_indices(steps) * (self.T // min(self.T, LCM_TIMES))
        else:
            return self._ramp(steps, spacing)
        return [self.level(float(t)) for t in times]

    def _flow_levels(self, steps: int, spacing: str) -> list[Level]:
        if spacing in _DDIM or spacing.startswith("align"):
            raise ValueError(
                f"the spacing {spacing!r} does not reach pure noise, where the schedule 'flow' "
                "starts; choose uniform, trailing, linspace, karras, exponential or beta"
            )
        least = 1 / self.T
        if spacing == "linspace":  # SD3 shifts its end before the whole is shifted
            times = np.linspace(1, self._shifted(least), steps)
        elif spacing == "beta":
            times = least + (1 - least) * beta_quantile(np.linspace(1, 0, steps))
        elif spacing == "beta_time":
            times = beta_quantile(1 - np.arange(steps) / steps)
        elif spacing == "simple":
            times = 1 - np.floor(np.arange(steps) * (self.T / steps)) / self.T
        elif spacing == "lcm":
            times = 1 - self._lcm_indices(steps) / min(self.T, LCM_TIMES)
        elif spacing in _CURVES:
            return self._ramp(steps, spacing)
        else:
            times = 1 - np.arange(steps) / steps
        return [Level(1 - u, u, self.T * u, self) for u in map(float, self._shifted(times))]

    def _shifted(self, u: Any) -> Any:
        return self.shift * u / (1 + (self.shift - 1) * u)

    def _lcm_indices(self, steps: int) -> np.ndarray:
        return np.floor(np.linspace(0, min(self.T, LCM_TIMES), steps, endpoint=False))

    def _ramp(self, steps: int, spacing: str) -> list[Level]:
        """Levels whose s = sigma / alpha falls along a curve; the first is the noisiest."""
        if spacing in ALIGN_YOUR_STEPS:
            table = np.log(ALIGN_YOUR_STEPS[spacing])
            at = np.linspace(0, len(table) - 1, steps + 1)[:-1]
            ramp = np.exp(np.interp(at, np.arange(len(table)), table))
            return [self.level_at_s(float(s)) for s in ramp]
        least, greatest = self.s_range
        ramp = curve(spacing, steps, min(greatest, NOISIEST), max(least, CLEANEST))
        first = self.level(self.last_t)
        # The shift multiplies s.
        return [first, *(self.level_at_s(self.shift * float(s)) for s in ramp[1:])]


_DDIM = ("leading", "ddim")
# Spacings whose runs begin with noise of deviation 1, as Stable Diffusion's own samplers do
# (diffusers' `init_noise_sigma`); the others begin with the sigma of their first level.
UNIT_NOISE = ("leading",)
_WHOLE = (*_DDIM, "trailing", "simple", "linspace")
_REACH_FIRST = ("linspace", "uniform", "karras", "exponential", "beta")
_CURVES: dict[str, tuple[Callable, Callable]] = {
    "karras": (lambda s: s ** (1 / 7), lambda y: y**7),
    "exponential": (np.log, np.exp),
    "kl_optimal": (np.arctan, np.tan),
}


def curve(spacing: str, steps: int, high: float, low: float) -> np.ndarray:
    """(steps,), s = sigma / alpha from `high` down to `low`: "karras", "exponential", "beta".

    "kl_optimal" has `low` as what follows its last.
    """
    if spacing == "beta":
        return low + (high - low) * beta_quantile(np.linspace(1, 0, steps))
    to, back = _CURVES[spacing]
    if spacing == "kl_optimal":
        return back(np.linspace(to(high), to(low), steps + 1))[:-1]
    return back(np.linspace(to(high), to(low), steps))


def spacing_named(name: str) -> str:
    """The spacing of this name or of this name in another program ("SGM Uniform", "DDIM").

    ValueError lists the choices, nearest first.
    """
    plain = name.strip().lower().replace(" ", "_").replace("-", "_")
    plain = SPACING_ALIASES.get(plain, plain)
    return plain if plain in SPACINGS else choose(name, SPACINGS, "spacing")


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
    import torch

    T = schedule.T
    if schedule.name in BETAS:
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
    import torch

    products = _alphas_cumprod(schedule)
    log_s = 0.5 * (torch.log1p(-products) - torch.log(products))
    if products[-1] == 0:  # between the last two times go on at the slope before; the end is exact
        log_s[-1] = 2 * log_s[-2] - log_s[-3]
    return log_s
