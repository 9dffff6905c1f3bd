"""What noise does to one picture, and what the model recovers from it.

`examine_noise` gives a `NoiseReport`, which is data; `page.html` makes a page of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from PIL import Image
from pydantic import Field
from torch import Tensor

from pellucid.explain.noise.estimate import Estimate, Estimates, estimate_from_each
from pellucid.explain.noise.noise_types import NoiseType, Spectrum, measure_noise_types, spectrum
from pellucid.explain.noise.schedules import ScheduleCurves, compare_schedules, with_models_own
from pellucid.explain.noise.trajectory import Moments, Trajectory, random_trajectory
from pellucid.html.records import Picture, Record
from pellucid.images.pixels import to_tensor
from pellucid.model import Model
from pellucid.noise import draw, generators
from pellucid.schedule import Schedule

__all__ = [
    "Estimate",
    "Estimates",
    "Moments",
    "NoiseReport",
    "NoiseSettings",
    "NoiseType",
    "ScheduleCurves",
    "Spectrum",
    "Trajectory",
    "examine_noise",
]

TIMES = (0, 50, 150, 300, 450, 600, 750, 900, 999)
LAST = 999
MOST_TIMES = 20
SIDE = 96
"""The longer side of the picture in the experiments without the model; a larger one is reduced."""


class NoiseReport(Record):
    """The results of all experiments with one picture."""

    source: str
    size: tuple[int, int]
    """Width and height of the original picture."""
    picture: Picture
    """The picture as the experiments without the model use it."""
    model: str
    seed: int
    times: tuple[int, ...]
    """The times, of 1000, at which everything is shown."""
    schedules: tuple[ScheduleCurves, ...]
    trajectory: Annotated[Trajectory, Field(validation_alias="walk")]
    noise_types: Annotated[tuple[NoiseType, ...], Field(validation_alias="kinds")]
    spectrum: Spectrum
    """The picture's own, for comparison."""
    estimates: Estimates


@dataclass(frozen=True)
class NoiseSettings:
    """What the experiments vary. Raises ValueError for what is out of range.

    times: of 1000, 1 to 20 rising whole numbers from 0 to 999. prompt, guidance: for the model's
    estimates; guidance 1 means no exaggeration. seed: of the noise. schedule: of the small steps;
    None is the model's own.
    """

    times: Sequence[int] = TIMES
    prompt: str = ""
    guidance: float = 1.0
    seed: int = 0
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        times = list(self.times)
        wrong = not 1 <= len(times) <= MOST_TIMES or not all(0 <= t <= LAST for t in times)
        if wrong or times != sorted(set(times)):
            given = ", ".join(map(str, times)) or "none"
            raise ValueError(
                f"times must be 1 to {MOST_TIMES} rising whole numbers from 0 to {LAST}, got {given}"
            )
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, got {self.guidance}")


def examine_noise(
    model: Model,
    image: Image.Image,
    source: str = "picture",
    settings: NoiseSettings = NoiseSettings(),
) -> NoiseReport:
    """Run every experiment. The same arguments give the same report.

    source: the name of the picture. Raises ValueError for a seed out of range.
    """
    times, seed = tuple(settings.times), settings.seed
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    x0 = to_tensor(small)
    (generator,) = generators(seed, 1)
    eps = draw("gaussian", tuple(x0.shape), [generator])[0]
    return NoiseReport(
        source=source,
        size=image.size,
        picture=small,
        model=model.name,
        seed=seed,
        times=times,
        schedules=compare_schedules(x0, eps, times, with_models_own(model.schedule)),
        trajectory=random_trajectory(x0, times, settings.schedule or model.schedule, generator),
        noise_types=measure_noise_types(seed),
        spectrum=spectrum(x0),
        estimates=estimate_from_each(model, image, times, settings.prompt, settings.guidance, seed),
    )


def first_noise(picture: Image.Image, seed: int) -> Tensor:
    """The noise that every schedule adds to the picture of a report, (3, H, W)."""
    return draw("gaussian", (3, picture.height, picture.width), generators(seed, 1))[0]
