"""What the methods are compared on: data, networks that fit it, and a way to count what was drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.backbones.unet import UNet, UNetConfig, init_for_training
from pellucid.diffusion import Conditioning
from pellucid.evaluate.coverage import Coverage
from pellucid.images import grid, to_pil

PATCH = 2

Draw = Callable[[int, np.random.Generator], Tensor]
"""(count, rng) -> so many real pictures or points, (B, ...)."""


@dataclass(frozen=True)
class Recipe:
    """How long to train and how fast to learn; the same for all seeds.

    seen: how many real pictures each method is shown. samples: how many are drawn and counted.
    steps: of the sampler. seeds: how many runs of each method. times: how the denoiser's t are drawn,
    one of `diffusion.TIMES`. ema: decay of its average. half: train in bf16 where that is fast.
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


class Contest(Protocol):
    """One data set with all that belongs to it.

    modes: how many kinds of picture there are; features: what precision and recall compare; good:
    what a good sample is, in words.
    """

    name: str
    title: str
    modes: int
    shape: tuple[int, ...]
    latent: int
    features: str
    good: str
    quick: Recipe
    full: Recipe

    def draw(self, count: int, rng: np.random.Generator) -> Tensor:
        """Real pictures or points to learn from, (B, *shape)."""

    def gan(self, pack: int) -> tuple[nn.Module, nn.Module]:
        """A generator z (B, latent) -> (B, *shape), and a discriminator that judges `pack`s."""

    def denoiser(self) -> nn.Module:
        """A network (x, t, conditioning) of about as many parameters as both of `gan`."""

    def measure(self, batches: Iterable[Tensor]) -> Coverage:
        """What is in the samples."""

    def look(self, samples: Tensor) -> Image.Image:
        """Some samples to look at."""


def picture_grid(samples: Tensor, count: int = 48, columns: int = 12) -> Image.Image:
    """The first `count` pictures of samples (B, 3, h, w) in [-1, 1]."""
    return grid([to_pil(pixels) for pixels in samples[:count]], columns, gap=1)


class PatchUNet(nn.Module):
    """A U-Net without text over patches of 2x2 pixels: (B, 3, h, w), t (B,) -> (B, 3, h, w).

    Each patch is one place of 12 channels, so that the widest maps have a quarter of the places.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        levels, channels = len(widths), 3 * PATCH**2
        self.unet = UNet(
            UNetConfig(
                in_channels=channels,
                out_channels=channels,
                block_out_channels=widths,
                layers_per_block=1,
                transformer_layers=(0,) * levels,
                mid_transformer_layers=0,
                heads=(1,) * levels,
                cross_attention_dim=1,
                norm_groups=8,
            )
        )
        init_for_training(self.unet)

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        places = F.pixel_unshuffle(x, PATCH).contiguous(memory_format=torch.channels_last)
        return F.pixel_shuffle(self.unet(places, t, cond), PATCH)
