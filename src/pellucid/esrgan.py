"""Upscalers of the ESRGAN family: networks that draw a picture larger in one evaluation.

They are trained on pairs of small and large pictures, with an adversarial loss for sharp detail. There
is no noise, no prompt and no seed in them. Pixels are 0..1 here, as in the published weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2  # of the leaky ReLUs
RESIDUAL = 0.2  # how much of a block is added to what it was given


@dataclass(frozen=True)
class RRDBConfig:
    """The shape of an RRDBNet."""

    channels: int = 3
    """Of a picture: 3."""
    width: int = 64
    blocks: int = 23
    growth: int = 32
    """Channels that each convolution of a dense block adds."""
    doublings: int = 2
    """How often the network doubles the size."""
    shuffle: int = 1
    """By how much the pixels are first folded into channels: the network then works on less."""

    @property
    def scale(self) -> float:
        """The factor of the whole network."""
        return 2**self.doublings / self.shuffle

    @property
    def reach(self) -> int:
        """How far around a pixel the tiles are read, in pixels of the small picture: beyond it,
        trained networks see next to nothing."""
        return 16 * self.shuffle


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees the results of all before it."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        for i in range(1, 6):
            out = growth if i < 5 else width
            setattr(self, f"conv{i}", nn.Conv2d(width + (i - 1) * growth, out, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:  # (B, width, h, w)
        seen = [x]
        for i in range(1, 5):
            seen.append(F.leaky_relu(getattr(self, f"conv{i}")(torch.cat(seen, 1)), SLOPE))
        last: Tensor = self.conv5(torch.cat(seen, 1))  # type: ignore[operator]
        return x + RESIDUAL * last


class RRDB(nn.Module):
    """A residual in residual dense block (section 3.1 of the paper)."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(width, growth)
        self.rdb2 = DenseBlock(width, growth)
        self.rdb3 = DenseBlock(width, growth)

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUAL * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nn.Module):
    """ESRGAN, Wang et al. 2018 (arXiv:1809.00219); with pixels folded, Real-ESRGAN, 2021
    (arXiv:2107.10833). The names are those of the second's weights."""

    def __init__(self, config: RRDBConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.conv_first = nn.Conv2d(config.channels * config.shuffle**2, width, 3, padding=1)
        self.body = nn.ModuleList(RRDB(width, config.growth) for _ in range(config.blocks))
        self.conv_body = nn.Conv2d(width, width, 3, padding=1)
        for i in range(1, config.doublings + 1):
            setattr(self, f"conv_up{i}", nn.Conv2d(width, width, 3, padding=1))
        self.conv_hr = nn.Conv2d(width, width, 3, padding=1)
        self.conv_last = nn.Conv2d(width, config.channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w), 0..1 -> (B, 3, scale h, scale w), not clipped. h and w are multiples of
        `shuffle`."""
        first = self.conv_first(F.pixel_unshuffle(x, self.config.shuffle))
        x = first
        for block in self.body:
            x = block(x)
        x = first + self.conv_body(x)
        for i in range(1, self.config.doublings + 1):
            larger = F.interpolate(x, scale_factor=2, mode="nearest")
            x = F.leaky_relu(getattr(self, f"conv_up{i}")(larger), SLOPE)
        last: Tensor = self.conv_last(F.leaky_relu(self.conv_hr(x), SLOPE))
        return last


@dataclass(frozen=True)
class SRVGGConfig:
    """The shape of an SRVGG network."""

    channels: int = 3
    width: int = 64
    layers: int = 32
    """Convolutions between the first and the last one."""
    scale: int = 4
    shuffle: int = 1
    """As in `RRDBConfig`; here nothing is folded."""

    @property
    def reach(self) -> int:
        """All that a pixel can depend on."""
        return self.layers + 2


class SRVGG(nn.Module):
    """The compact network of Real-ESRGAN (arXiv:2107.10833): convolutions at the small size, and the
    large picture at the end."""

    def __init__(self, config: SRVGGConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = [nn.Conv2d(config.channels, config.width, 3, padding=1)]
        for _ in range(config.layers):
            layers += [
                nn.PReLU(config.width),
                nn.Conv2d(config.width, config.width, 3, padding=1),
            ]
        layers += [
            nn.PReLU(config.width),
            nn.Conv2d(config.width, config.channels * config.scale**2, 3, padding=1),
        ]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w), 0..1 -> (B, 3, scale h, scale w), not clipped."""
        residual = F.pixel_shuffle(self.body(x), self.config.scale)
        return residual + F.interpolate(x, scale_factor=self.config.scale, mode="nearest")
