"""What methods are compared on: data, networks that fit it, and a way to count what was drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image
from torch import Tensor, nn

from pellucid.evaluate.compare.coverage import Coverage

Draw = Callable[[int, np.random.Generator], Tensor]
"""(count, rng) -> that many real pictures or points, (B, ...)."""


@dataclass(frozen=True)
class Setup:
    """How long to train and how fast to learn; the same for all seeds.

    seen: how many real pictures each method is shown. samples: how many are drawn and counted.
    steps: of the sampler. seeds: how many runs of each method. times: how the denoiser's t are
    drawn, one of `diffusion.TIMES`. ema: decay of its average. half: bf16 where that is fast.
    """

    seen: int
    batch: int
    gan_rate: float
    diffusion_rate: float
    steps: int
    samples: int
    seeds: int
    times: str = "logit_normal"
    ema: float = 0.995
    half: bool = True

    @property
    def updates(self) -> int:
        return max(self.seen // self.batch, 1)


class Task(Protocol):
    """One data set with all that belongs to it.

    modes: how many kinds of picture there are; features: what precision and recall compare; good:
    what a good sample is, in words; published: results of the literature, or "". quick, full: the
    setups of a short and of a long comparison.
    """

    name: str
    title: str
    modes: int
    features: str
    good: str
    published: str
    quick: Setup
    full: Setup

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one picture or point."""

    @property
    def latent(self) -> int:
        """Length of z."""

    def draw(self, count: int, rng: np.random.Generator) -> Tensor:
        """Real pictures or points to learn from, (B, *shape)."""

    def gan(self, pack: int) -> tuple[nn.Module, nn.Module]:
        """A generator z (B, latent) -> (B, *shape), and a discriminator that judges `pack`s."""

    def denoiser(self) -> nn.Module:
        """A network (x, t, conditioning) of about as many parameters as both of `gan`."""

    def measure(self, batches: Iterable[Tensor]) -> Coverage:
        """Count what is in the samples."""

    def preview(self, samples: Tensor, label: str) -> Image.Image:
        """A picture of some samples; label: what they are, for a legend."""
