"""Types of noise, and one seed for each image.

Noise is drawn on the CPU, image i from its own generator with the seed + i. So the same seed gives
the same picture on every device, and any one image of a batch can be made again alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from pellucid.plugins import choose

MAX_SEED = 2**63 - 1
OFFSET = 0.1
PYRAMID_DISCOUNT = 0.7


def generators(seed: int, count: int) -> list[Generator]:
    """`count` CPU generators with the seeds seed, seed + 1, ...

    ValueError: a seed that is negative or, with the count, above 2^63 - 1; a count below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if not 0 <= seed <= MAX_SEED - (count - 1):
        raise ValueError(f"seed must be from 0 to 2^63 - {count}, got {seed}")
    return [Generator().manual_seed(seed + i) for i in range(count)]


def gaussian(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Independent N(0, 1). For (4, 64, 64) the same numbers as other programs draw from a seed."""
    return torch.randn((1, *shape), generator=generator)


def offset(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Gaussian plus one number per channel (Guttenberg 2023), which frees the mean brightness."""
    noise = gaussian(shape, generator)
    return (noise + OFFSET * gaussian((shape[0], 1, 1), generator)) / math.hypot(1, OFFSET)


def pyramid(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Gaussian at full size, half, quarter ... added up (Whitaker 2023, "multi-resolution")."""
    noise = gaussian(shape, generator)
    channels, height, width = shape
    weight = 1.0
    while min(height, width) > 1:
        height, width, weight = height // 2, width // 2, weight * PYRAMID_DISCOUNT
        coarse = gaussian((channels, height, width), generator)
        noise = noise + weight * F.interpolate(coarse, shape[1:], mode="bilinear")
    return _unit(noise)


def blue(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Power rises with frequency: neighbours repel (Huang et al. 2024)."""
    return _colored(shape, generator, 0.5)


def pink(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Power falls with frequency: neighbours are correlated, as in photographs."""
    return _colored(shape, generator, -0.5)


def _colored(shape: tuple[int, ...], generator: Generator, exponent: float) -> Tensor:
    """Gaussian noise whose amplitude at frequency f is multiplied by f^exponent."""
    height, width = shape[1:]
    fy, fx = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
    frequency = torch.hypot(fy[:, None], fx[None, :])
    frequency[0, 0] = 1 / max(height, width)  # the mean: as the lowest wave
    spectrum = torch.fft.rfft2(gaussian(shape, generator)) * frequency**exponent
    return _unit(torch.fft.irfft2(spectrum, s=(height, width)))


def _unit(noise: Tensor) -> Tensor:
    """Scaled to a mean square of 1, which schedules assume."""
    return noise / noise.square().mean().sqrt()


NOISES: dict[str, Callable[[tuple[int, ...], Generator], Tensor]] = {
    "gaussian": gaussian,
    "offset": offset,
    "pyramid": pyramid,
    "blue": blue,
    "pink": pink,
}


def draw(kind: str, shape: tuple[int, ...], generators: Sequence[Generator]) -> Tensor:
    """(B, C, H, W) float32 noise for shape (C, H, W), image i from generators[i] alone."""
    make = NOISES[choose(kind, NOISES, "noise")]
    return torch.cat([make(tuple(shape), generator) for generator in generators])


def source(generators: Sequence[Generator], kind: str = "gaussian") -> Callable[[Tensor], Tensor]:
    """A function that draws fresh noise of x's shape, dtype and device, for stochastic samplers."""

    def fresh(x: Tensor) -> Tensor:
        return draw(kind, tuple(x.shape[1:]), generators).to(x)

    return fresh


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """From a (weight 0) to b (weight 1) along the sphere, each image of the batch by itself.

    A straight mix of two noises is too weak by up to sqrt(2); this keeps the length (Shoemake
    1985).
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be from 0 to 1, got {weight}")
    wide = (-1, *[1] * (a.ndim - 1))
    cosine = F.cosine_similarity(a.flatten(1), b.flatten(1)).clamp(-1, 1)
    angle = cosine.acos().view(wide)
    straight = torch.lerp(a, b, weight)
    sine = angle.sin()
    arc = (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / sine
    return torch.where(sine < 1e-4, straight, arc)
