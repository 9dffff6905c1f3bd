"""The types of noise: each as a picture, its spectrum, and the numbers that distinguish it."""

from __future__ import annotations

import inspect

from torch import Tensor

from pellucid.explain.noise.spectrum import power_spectrum, radial_average, slope
from pellucid.html.records import Picture, Record
from pellucid.images.pixels import to_pil
from pellucid.noise import NOISES, draw, generators

SIDE, DRAWS = 96, 32


class Spectrum(Record):
    """The power at each frequency in cycles per pixel, averaged over directions."""

    frequency: tuple[float, ...]
    power: tuple[float, ...]
    slope: float
    """The exponent of the power law that fits best; NaN if there is nothing to fit."""
    plane: Picture
    """The power of every wave, frequency 0 in the middle: black 1/100, grey 1, white 100."""


class NoiseType(Record):
    """A type of noise, measured over `draws` draws of (3, SIDE, SIDE)."""

    name: str
    about: str
    draws: int
    variance: float
    """The mean square; schedules assume 1."""
    brightness: float
    """Deviation of the mean of a channel from draw to draw: for white noise 1 / SIDE."""
    neighbours: float
    """Correlation of adjacent numbers, -1 to 1."""
    picture: Picture
    """The first draw: -2.5 is black, 2.5 is white."""
    spectrum: Spectrum


def measure_noise_types(seed: int) -> tuple[NoiseType, ...]:
    """Every type of noise that exists; the picture is the first draw of `seed`."""
    types = []
    for name, make in NOISES.items():
        x = draw(name, (3, SIDE, SIDE), generators(seed, DRAWS))  # (DRAWS, 3, SIDE, SIDE)
        left, right = x[..., :-1], x[..., 1:]
        types.append(
            NoiseType(
                name=name,
                about=(inspect.getdoc(make) or "").split("\n")[0],
                draws=DRAWS,
                variance=float(x.square().mean()),
                brightness=float(x.mean(dim=(-2, -1)).std()),
                neighbours=float((left * right).mean() / x.square().mean()),
                picture=to_pil(x[0] / 2.5),
                spectrum=spectrum(x.flatten(0, 1)),
            )
        )
    return tuple(types)


def spectrum(x: Tensor) -> Spectrum:
    """The spectrum of (N, H, W), averaged over N."""
    power = power_spectrum(x).mean(0)
    frequency, ring = radial_average(power)
    decades = power.clamp(min=1e-30).log10()
    return Spectrum(
        frequency=tuple(frequency.tolist()),
        power=tuple(ring.tolist()),
        slope=slope(frequency, ring),
        plane=to_pil((decades / 2).expand(3, *power.shape)),
    )
