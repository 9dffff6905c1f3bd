"""Power spectra: how the power of a picture, or of noise, is distributed over frequencies.

Photographs have most of their power at low frequencies, white noise has the same at all. So noise
hides fine detail first, and a sampler recovers coarse structure first.
"""

from __future__ import annotations

import torch
from torch import Tensor


def power_spectrum(x: Tensor) -> Tensor:
    """|DFT|^2 / (H W) of each (..., H, W), float64, with frequency 0 in the middle.

    By Parseval's theorem its mean is the mean square of x: white noise of variance 1 has power 1
    at every frequency, on average.
    """
    height, width = x.shape[-2:]
    waves = torch.fft.fft2(x.double())
    return torch.fft.fftshift(waves.abs().square() / (height * width), dim=(-2, -1))


def radial_average(power: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of a spectrum (H, W) over rings around its middle.

    Returns the frequency of each ring in cycles per pixel and the mean power there, both (N,). The
    rings are 1 / max(H, W) wide and go up to 1/2, the highest frequency that pixels can represent;
    frequency 0, the mean brightness, is in none. N is half of the longer side.
    """
    fy, fx = (torch.fft.fftshift(torch.fft.fftfreq(n, dtype=torch.float64)) for n in power.shape)
    longest = max(power.shape)
    ring = (torch.hypot(fy[:, None], fx[None, :]) * longest).round().long()
    count = longest // 2
    inside = (ring >= 1) & (ring <= count)
    rings, values = ring[inside] - 1, power[inside]
    zeros = torch.zeros(count, dtype=torch.float64)
    total = zeros.index_add(0, rings, values)
    number = zeros.index_add(0, rings, torch.ones_like(values))
    return torch.arange(1, count + 1, dtype=torch.float64) / longest, total / number


def slope(frequency: Tensor, power: Tensor) -> float:
    """The exponent p of the power law power ~ frequency^p that fits best, both (N,); NaN if N < 2.

    Least squares on the logarithms; frequencies without power are ignored. White noise has 0,
    photographs about -2 (Field 1987).
    """
    some = power > 0
    x, y = frequency[some].log(), power[some].log()
    if len(x) < 2:
        return float("nan")
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())
