"""The tiny autoencoder: what the autoencoder does, much faster and a little worse.

The network of TAESD (Ollin Boer Bohan 2023, github.com/madebyollin/taesd), which was trained to
imitate Stable Diffusion's autoencoder: three residual blocks at every size, no norms, no attention.
There is one for each kind of latents (taesd for SD1 and SD2, taesdxl, taesd3). It works on scaled
latents, as the diffusion network sees them. The parameters have the names that diffusers gives them
(AutoencoderTiny).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TinyVAEConfig:
    """The shape of a tiny autoencoder, which may be one half only."""

    latent_channels: int = 4
    width: int = 64
    encoder: bool = True
    decoder: bool = True

    def __post_init__(self) -> None:
        if not (self.encoder or self.decoder):
            raise ValueError("a tiny autoencoder needs an encoder or a decoder; both are off")

    @property
    def downsample(self) -> int:
        """Pixels per latent, along one side."""
        return 2 ** (STAGES - 1)


STAGES = 4  # sizes, from that of the pixels to that of the latents
BLOCKS = 3  # at every size but the largest, which has one
MAGNITUDE = 3.0  # latents are squeezed to less than this


def conv(channels_in: int, channels_out: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=bias)


class Block(nn.Module):
    """Three convolutions with a shortcut: (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] -> scaled latents (B, C, H / 8, W / 8)."""

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        width = config.width
        layers: list[nn.Module] = [conv(3, width), Block(width)]
        for _ in range(STAGES - 1):
            layers += [conv(width, width, stride=2, bias=False)]
            layers += [Block(width) for _ in range(BLOCKS)]
        self.layers = nn.Sequential(*layers, conv(width, config.latent_channels))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers((pixels + 1) / 2)


class Decoder(nn.Module):
    """Scaled latents (B, C, h, w) -> pixels (B, 3, 8 h, 8 w), about in [-1, 1]."""

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        width = config.width
        layers: list[nn.Module] = [conv(config.latent_channels, width), nn.ReLU()]
        for _ in range(STAGES - 1):
            layers += [Block(width) for _ in range(BLOCKS)]
            layers += [nn.Upsample(scale_factor=2), conv(width, width, bias=False)]
        self.layers = nn.Sequential(*layers, Block(width), conv(width, 3))

    def forward(self, latents: Tensor) -> Tensor:
        squeezed = torch.tanh(latents / MAGNITUDE) * MAGNITUDE
        return self.layers(squeezed) * 2 - 1


class TinyVAE(nn.Module):
    """The tiny autoencoder, or the half that the config names."""

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config) if config.encoder else None
        self.decoder = Decoder(config) if config.decoder else None

    def to_latents(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1], H and W multiples of 8 -> scaled latents.

        ValueError: sides of another size, no encoder.
        """
        f = self.config.downsample
        if self.encoder is None:
            raise ValueError("this tiny autoencoder is a decoder alone and cannot encode")
        if pixels.shape[2] % f or pixels.shape[3] % f:
            raise ValueError(
                f"pixels are {pixels.shape[3]} wide and {pixels.shape[2]} high; "
                f"both must be multiples of {f}"
            )
        return self.encoder(pixels)

    def to_pixels(self, latents: Tensor) -> Tensor:
        """Scaled latents -> pixels, about in [-1, 1]. ValueError if there is no decoder."""
        if self.decoder is None:
            raise ValueError("this tiny autoencoder is an encoder alone and cannot decode")
        return self.decoder(latents)
