"""What the tasks on pictures have in common: the networks of the methods, and their setups."""

from __future__ import annotations

from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.backbones.unet import UNet, UNetConfig, init_for_training
from pellucid.diffusion import Conditioning
from pellucid.evaluate.compare.task import Setup
from pellucid.gan import GANConfig, untrained
from pellucid.images.pixels import grid, to_pil

PATCH = 2
WIDTHS = (32, 64)  # of the U-Net: as many parameters as both networks of a GAN
SHOWN, COLUMNS = 48, 12

QUICK = Setup(
    seen=60_000,
    batch=32,
    gan_rate=5e-4,
    diffusion_rate=2e-3,
    steps=10,
    samples=1000,
    seeds=1,
)
FULL = replace(QUICK, seen=1_000_000, gan_rate=2e-4, steps=20, samples=5000, seeds=5)


class PictureTask:
    """A task on pictures (B, 3, size, size), the size of its `networks`."""

    networks: GANConfig
    published = ""

    @property
    def latent(self) -> int:
        return self.networks.latent

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, self.networks.size, self.networks.size)

    def gan(self, pack: int) -> tuple[nn.Module, nn.Module]:
        return untrained(replace(self.networks, pack=pack))

    def denoiser(self) -> nn.Module:
        return PatchUNet(WIDTHS).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def preview(self, samples: Tensor, label: str) -> Image.Image:
        """The first of them, without a legend: the page has one."""
        return grid([to_pil(pixels) for pixels in samples[:SHOWN]], COLUMNS, gap=1)


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
