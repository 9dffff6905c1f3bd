"""What a diffusion network is trained to do: how noise is added, and how its answer is judged."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from pellucid.data import setting
from pellucid.diffusion import (
    PREDICTIONS,
    TIMES,
    WEIGHTINGS,
    Conditioning,
    Network,
    sample_t,
    training_loss,
)
from pellucid.noise import NOISES, draw
from pellucid.plugins import choose
from pellucid.schedule import SCHEDULES, Schedule
from pellucid.train import loop

BETA_START, BETA_END = 1e-4, 0.02  # of "linear" (Ho et al. 2020, section 4)
VALIDATION_TIMES = 8


@dataclass(frozen=True)
class LossOptions:
    """How the loss of a denoiser is made, independent of what it predicts."""

    _: KW_ONLY
    weighting: str = setting(
        "uniform", f"Weight of the loss at each time: {', '.join(WEIGHTINGS)}."
    )
    noise: str = setting("gaussian", f"Noise that is added: {', '.join(NOISES)}.")
    times: str = setting(
        "",
        f'How often each time is drawn: {", ".join(TIMES)}; "" is logit_normal for a network that '
        "predicts flow, and else uniform.",
    )
    times_mean: float = setting(
        0.0, "Mean of logit(t / T), for logit_normal; above 0 noisy times come more often."
    )
    times_uniform: float = setting(
        0.0,
        "Share of uniform times in logit_normal, 0 to 1, so that the network learns the pure noise "
        "at which a run begins.",
    )


@dataclass(frozen=True)
class ObjectiveOptions(LossOptions):
    """The same, and what the network predicts on which schedule."""

    _: KW_ONLY
    schedule: str = setting("flow", f"Noise schedule: {', '.join(SCHEDULES)}.")
    prediction: str = setting("flow", f"What the network predicts: {', '.join(PREDICTIONS)}.")
    zero_terminal_snr: bool = setting(
        False, "Make the last time of the schedule pure noise; flow always ends there."
    )

    def objective(self) -> Objective:
        """ValueError for an unknown name, and for what does not go together."""
        choose(self.schedule, SCHEDULES, "schedule")
        schedule = Schedule(self.schedule, zero_terminal_snr=self.zero_terminal_snr)
        if self.schedule == "linear":
            schedule = replace(schedule, beta_start=BETA_START, beta_end=BETA_END)
        if self.prediction == "eps" and schedule.level(schedule.last_t).alpha == 0:
            raise ValueError(
                "prediction is eps, and the schedule begins at pure noise, where the noise says "
                "nothing of the picture; choose x0, v or flow, or another schedule"
            )
        return Objective(
            schedule,
            self.prediction,
            self.weighting,
            self.noise,
            self.times,
            self.times_mean,
            self.times_uniform,
        )


@dataclass(frozen=True)
class Objective:
    """A schedule, what is predicted on it, and how errors count. ValueError for an unknown name.

    weighting, noise: of `diffusion.WEIGHTINGS` and `noise.NOISES`. times: of `diffusion.TIMES`, or
    "" for the usual one: logit_normal for flow (Esser et al. 2024), else uniform. times_mean: of
    the logit, and times_uniform: the share of uniform times, for logit_normal.
    """

    schedule: Schedule
    prediction: str
    weighting: str = "uniform"
    noise: str = "gaussian"
    times: str = ""
    times_mean: float = 0.0
    times_uniform: float = 0.0

    def __post_init__(self) -> None:
        choose(self.prediction, PREDICTIONS, "prediction")
        choose(self.weighting, WEIGHTINGS, "loss weighting")
        choose(self.noise, NOISES, "noise")
        usual = "logit_normal" if self.prediction == "flow" else "uniform"
        object.__setattr__(self, "times", self.times or usual)
        self._times(0, None)

    def loss(
        self, network: Network, x0: Tensor, cond: Conditioning, generator: torch.Generator
    ) -> Tensor:
        """The mean loss at random times, scalar. x0 (B, C, H, W); `generator` is on the CPU."""
        t = self._times(len(x0), generator)
        eps = draw(self.noise, x0.shape[1:], [generator] * len(x0))
        return self._losses(network, x0, cond, t, eps, self.weighting).mean()

    def _times(self, count: int, generator: torch.Generator | None) -> Tensor:
        mean, uniform = self.times_mean, self.times_uniform
        return sample_t(self.times, count, self.schedule.T, generator, mean=mean, uniform=uniform)

    @torch.no_grad()
    def validation_loss(self, network: Network, x0: Tensor, cond: Conditioning) -> float:
        """The mean loss, unweighted, with fixed noise at eight fixed times in turn."""
        t = (torch.arange(len(x0)) % VALIDATION_TIMES + 0.5) / VALIDATION_TIMES * self.schedule.T
        generator = torch.Generator().manual_seed(0)
        eps = draw(self.noise, x0.shape[1:], [generator] * len(x0))
        return float(self._losses(network, x0, cond, t, eps, "uniform").mean())

    def _losses(
        self,
        network: Network,
        x0: Tensor,
        cond: Conditioning,
        t: Tensor,
        eps: Tensor,
        weighting: str,
    ) -> Tensor:
        t, eps = t.to(x0.device), eps.to(x0)
        with loop.autocast(x0.device):
            return training_loss(
                network, x0, cond, self.schedule, self.prediction, t, eps, weighting
            )
