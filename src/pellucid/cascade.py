"""Super-resolution: a second diffusion model makes a small picture large.

A cascade (Ho et al. 2021, arXiv:2106.15282) draws in two stages. The first decides what is in the
picture, at a size that is cheap. The second, here, adds what a larger picture has more: sharp edges
and fine lines. It is a diffusion model too, which sees the small picture next to the noise (SR3,
Saharia et al. 2021, arXiv:2104.07636). DALL-E 2 and Imagen are built in this way.

What is diffused is the residual r = scale * (large - bicubic(small)): what bicubic enlargement
misses. It is near zero in flat parts, so the network need not learn to copy the small picture.

The small picture of a generator has faults that a photograph made smaller has not. Two things help:
training on pictures that have such faults, and noise on the small picture, with its deviation as an
input of the network ("noise conditioning augmentation", Ho et al. 2021, section 4).

The network has convolutions only, and its norms are over one position at a time, so it is trained
on crops and works on pictures of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.nn import TimestepEmbedding, sinusoid
from pellucid.schedule import Level, Schedule

STEPS = 2
"""Enough: the small picture says nearly all. More are sharper and further from the truth."""
SCHEDULE = Schedule("flow")
"""x = (1 - u) r + u eps, with u from 0 to 1."""


@dataclass(frozen=True)
class SuperResolutionConfig:
    """The shape of a super-resolution network."""

    factor: int = 4  # of the sides
    in_channels: int = 3
    block_out_channels: tuple[int, ...] = (64, 96, 128)
    layers_per_block: int = 1
    embedding: int = 64  # width of the sinusoids of t and of the noise on the small picture
    residual_scale: float = 8.0  # brings the residual to about unit deviation
    period: int = 8  # pixels of the small picture after which a generator's grid repeats; 0: none
    sharpen: float = 0.0  # how much of its finest detail is added to a picture once more

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise ValueError(f"factor must be at least 2, got {self.factor}")
        if not self.block_out_channels:
            raise ValueError("block_out_channels must have at least one level, got none")
        if self.layers_per_block < 1:
            raise ValueError(f"layers_per_block must be at least 1, got {self.layers_per_block}")
        if self.sharpen < 0:
            raise ValueError(f"sharpen must be at least 0, got {self.sharpen}")


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each position (Ba et al. 2016, arXiv:1607.06450).

    Group norm has the statistics of the whole picture, which differ from those of a crop.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # (B, h, w, C); in channels_last nothing is copied
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Residual block whose channels are scaled and shifted by the embedding.

    FiLM (Perez et al. 2017, arXiv:1709.07871, eq. 2): h <- h * (1 + gamma) + beta.
    """

    def __init__(self, channels_in: int, channels: int, width: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.film = nn.Linear(width, 2 * channels)
        self.norm2 = ChannelNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_shortcut = (
            nn.Conv2d(channels_in, channels, 1) if channels_in != channels else None
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, C_in, h, w), embedding (B, width) -> (B, C, h, w)."""
        gamma, beta = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        h = self.conv2(F.silu(h * (1 + gamma) + beta))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class SuperResolution(nn.Module):
    """A U-Net (Ronneberger et al. 2015, arXiv:1505.04597) at the size of the small picture.

    Each square of factor x factor pixels of the noisy residual becomes the channels of one position,
    and becomes pixels again at the end (Shi et al. 2016, arXiv:1609.05158). So a picture of 256x256
    costs as much as one of 64x64.
    """

    def __init__(self, config: SuperResolutionConfig) -> None:
        super().__init__()
        self.config = config
        widths, count = config.block_out_channels, config.layers_per_block
        width = 4 * config.embedding
        folded = config.in_channels * config.factor**2
        waves = 4 if config.period > 0 else 0

        def level(channels_in: int, channels: int, skipped: int = 0) -> nn.ModuleList:
            first = [channels_in] + [channels] * (count - 1)
            return nn.ModuleList(Block(each + skipped, channels, width) for each in first)

        self.conv_in = nn.Conv2d(folded + config.in_channels + waves, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(config.embedding, width)
        self.noise_embedding = TimestepEmbedding(config.embedding, width)
        self.down_blocks = nn.ModuleList(
            level(widths[max(i - 1, 0)], each) for i, each in enumerate(widths)
        )
        self.downsamplers = nn.ModuleList(
            nn.Conv2d(each, each, 3, stride=2, padding=1) for each in widths[:-1]
        )
        self.mid_block = Block(widths[-1], widths[-1], width)
        self.up_blocks = nn.ModuleList(
            level(widths[min(i + 1, len(widths) - 1)], each, skipped=each)
            for i, each in reversed(list(enumerate(widths)))
        )
        self.norm_out = ChannelNorm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], folded, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, small: Tensor, noise: Tensor) -> Tensor:
        """The estimate of the clean residual, (B, 3, H, W).

        x (B, 3, H, W), the noisy residual; t (B,), 0 to 1000; small (B, 3, H / factor,
        W / factor) in [-1, 1], with noise on it of the deviation `noise` (B,).
        """
        config, embedding = self.config, self.embed(t, noise, x.dtype)
        parts = [F.pixel_unshuffle(x, config.factor), small.to(x.dtype)]
        if config.period > 0:
            parts.append(grid_waves(small, config.period).to(x.dtype))
        x = self.conv_in(torch.cat(parts, dim=1))
        kept = []
        for i, blocks in enumerate(self.down_blocks):
            for block in cast("Iterable[Block]", blocks):
                x = block(x, embedding)
                kept.append(x)
            if i < len(self.downsamplers):
                x = self.downsamplers[i](x)
        x = self.mid_block(x, embedding)
        for i, blocks in enumerate(self.up_blocks):
            if i > 0:  # the size of the next level, which may be odd
                x = F.interpolate(x, size=kept[-1].shape[2:], mode="nearest")
            for block in cast("Iterable[Block]", blocks):
                x = block(torch.cat([x, kept.pop()], dim=1), embedding)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), config.factor)

    def embed(self, t: Tensor, noise: Tensor, dtype: torch.dtype) -> Tensor:
        """The time and the noise on the small picture, which all blocks get: (B, 4 * embedding)."""
        time = self.time_embedding(sinusoid(t, self.config.embedding).to(dtype))
        added = self.noise_embedding(sinusoid(1000 * noise, self.config.embedding).to(dtype))
        return F.silu(time + added)


def grid_waves(small: Tensor, period: int) -> Tensor:
    """Sine and cosine of x and y modulo `period`, (B, 4, h, w): where a generator's grid lies.

    A crop has to begin on a multiple of `period`.
    """
    height, width = small.shape[2:]
    waves = []
    for length, down in ((height, True), (width, False)):
        angle = torch.arange(length, device=small.device) * (2 * torch.pi / period)
        for wave in (angle.sin(), angle.cos()):
            waves.append((wave[:, None] if down else wave[None]).expand(height, width))
    return torch.stack(waves).expand(len(small), -1, -1, -1)


@torch.no_grad()
def init_for_training(network: SuperResolution) -> None:
    """Every residual branch, and the whole output, starts at zero: bicubic is the first answer."""
    layers = [network.conv_out, *(m.conv2 for m in network.modules() if isinstance(m, Block))]
    for layer in layers:
        for parameter in layer.parameters():
            parameter.zero_()


# ---------------------------------------------------------------- what is diffused


def enlarge(small: Tensor, factor: int) -> Tensor:
    """Bicubic enlargement, (B, 3, h, w) -> (B, 3, factor * h, factor * w)."""
    return F.interpolate(small.float(), scale_factor=factor, mode="bicubic", align_corners=False)


def to_residual(large: Tensor, small: Tensor, config: SuperResolutionConfig) -> Tensor:
    """r = residual_scale * (large - bicubic(small)): what is diffused, (B, 3, H, W)."""
    return config.residual_scale * (large - enlarge(small, config.factor))


def to_large(residual: Tensor, small: Tensor, config: SuperResolutionConfig) -> Tensor:
    """The inverse of `to_residual`, clipped to [-1, 1]."""
    large = enlarge(small, config.factor)
    return large.add_(residual.float() / config.residual_scale).clamp_(-1, 1)


class Noises(NamedTuple):
    """What is drawn at random for a step of training."""

    u: Tensor  # (B,), 0 to 1: the time of the residual
    eps: Tensor  # (B, 3, H, W): its noise
    augment: Tensor  # (B,): the deviation of the noise on the small picture
    eps_small: Tensor  # (B, 3, h, w): that noise, of unit deviation


def training_loss(
    network: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    large: Tensor,
    small: Tensor,
    noises: Noises,
    config: SuperResolutionConfig,
    power: int = 2,
) -> Tensor:
    """The weighted error of each pair, (B,): squared, or as `power` says.

    The network estimates the residual; the squared error is divided by u^2 + 0.05. Without the 0.05
    that would be the error of the velocity, (r - r') / u. With power 1 it is the absolute error,
    over the root of that (SR3, equation 6); its best answer is a median, in which an edge whose
    place is uncertain stays an edge. large (B, 3, H, W); small (B, 3, h, w).
    """
    u = noises.u.view(-1, 1, 1, 1)
    seen = small + noises.augment.view(-1, 1, 1, 1) * noises.eps_small
    residual = to_residual(large, seen, config)
    x = (1 - u) * residual + u * noises.eps
    estimate = network(x, noises.u * SCHEDULE.T, seen, noises.augment)
    error = (estimate.float() - residual).abs().pow(power).flatten(1).mean(1)
    return error / (noises.u.square() + 0.05) ** (power / 2)


# ---------------------------------------------------------------- sampling


class SecondStageStep(NamedTuple):
    """A step of the second stage."""

    before: Tensor  # (B, 3, H, W): the noisy residual that the step began with
    residual: Tensor  # (B, 3, H, W): the clean one, as it is estimated from x
    small: Tensor  # (B, 3, h, w) in [-1, 1]: the picture that is enlarged
    config: SuperResolutionConfig
    level: Level  # that was reached

    @property
    def large(self) -> Tensor:
        """The picture of this estimate, (B, 3, H, W) in [-1, 1]; made when it is asked for."""
        return sharpened(to_large(self.residual, self.small, self.config), self.config.sharpen)


def sharpened(pictures: Tensor, amount: float) -> Tensor:
    """`amount` times the finest detail of (B, 3, H, W), their difference from a 3x3 mean, is added.

    An estimate is between all pictures that fit, and so softer than each of them.
    """
    edged = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    # An eighth of the time of avg_pool2d.
    rows = (edged[..., :-2, :] + edged[..., 1:-1, :]).add_(edged[..., 2:, :])
    mean = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).div_(9)
    return (pictures - mean).mul_(amount).add_(pictures).clamp_(-1, 1)


def sample(
    network: SuperResolution, small: Tensor, noise: Tensor, steps: int = STEPS, augment: float = 0.0
) -> Iterator[SecondStageStep]:
    """Enlarge pictures, step by step, with DDIM (Song et al. 2020, arXiv:2010.02502, eq. 12).

    small: (B, 3, h, w) in [-1, 1]. noise: (B, 3, H, W), where the residual begins. augment: the
    deviation of noise that was added to `small`; some of it lets the network depart further from the
    small picture. ValueError: no step, or sizes that do not fit each other.
    """
    config = network.config
    height, width = small.shape[2:]
    shape = (len(small), config.in_channels, height * config.factor, width * config.factor)
    if tuple(noise.shape) != shape:
        raise ValueError(f"noise must have the shape {shape}, got {tuple(noise.shape)}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if augment < 0:
        raise ValueError(f"augment must be at least 0, got {augment}")
    levels = SCHEDULE.levels(steps, "uniform")
    dtype = next(network.parameters()).dtype
    added = torch.full((len(small),), augment, device=small.device)
    x = noise * levels[0].sigma
    for now, after in pairwise(levels):
        t = torch.full((len(small),), now.t, device=small.device)
        residual = network(x.to(dtype), t, small.to(dtype), added).to(x.dtype)
        yield SecondStageStep(x, residual, small, config, after)
        if after.sigma > 0:
            eps = (x - now.alpha * residual) / now.sigma
            x = after.alpha * residual + after.sigma * eps
