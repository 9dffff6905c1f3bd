"""The noise lab: one picture, and all that noise does to it and the network makes of that.

`look` gives a `NoiseLab`, which is data; `page.page` makes a page of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

from pellucid.explain.noise import estimate, kinds, schedules
from pellucid.explain.noise.estimate import Estimate, Estimates
from pellucid.explain.noise.kinds import Kind, Spectrum
from pellucid.explain.noise.schedules import ScheduleLook
from pellucid.explain.noise.walk import Moments, Walk, walk
from pellucid.html.records import Picture, Record
from pellucid.images.pixels import to_tensor
from pellucid.model import Model
from pellucid.noise import draw, generators
from pellucid.schedule import Schedule

__all__ = [
    "Estimate",
    "Estimates",
    "Kind",
    "Moments",
    "NoiseLab",
    "ScheduleLook",
    "Spectrum",
    "Walk",
    "look",
]

TIMES = (0, 50, 150, 300, 450, 600, 750, 900, 999)
LAST = 999
MOST_TIMES = 20
SIDE = 96
"""The longer side of the picture in the experiments without the model; a larger one is made so."""


class NoiseLab(Record):
    """What was seen of one picture."""

    source: str
    size: tuple[int, int]
    """Width and height of the picture as it came."""
    picture: Picture
    """It, as the experiments without the model have it."""
    model: str
    seed: int
    times: tuple[int, ...]
    """The times, of 1000, at which the picture was looked at."""
    schedules: tuple[ScheduleLook, ...]
    walk: Walk
    kinds: tuple[Kind, ...]
    spectrum: Spectrum
    """That of the picture, to compare."""
    estimates: Estimates


def look(
    model: Model,
    image: Image.Image,
    source: str = "picture",
    times: Sequence[int] = TIMES,
    *,
    prompt: str = "",
    guidance: float = 1.0,
    seed: int = 0,
    schedule: Schedule | None = None,
) -> NoiseLab:
    """Do every experiment. The same arguments give the same record.

    source: what the picture is called. prompt, guidance: for the model's look; at guidance 1 the
    prompt counts once, and the empty one says nothing. schedule: that of the small steps; None is
    the model's own. Raises ValueError: times that are not 1 to 20 numbers from 0 to 999 in order,
    a seed out of range.
    """
    times = tuple(times)
    wrong = not 1 <= len(times) <= MOST_TIMES or not all(0 <= t <= LAST for t in times)
    if wrong or list(times) != sorted(set(times)):
        given = ", ".join(map(str, times))
        raise ValueError(
            f"the times are {given or 'none'}; 1 to {MOST_TIMES} rising whole numbers from 0 to "
            f"{LAST} are wanted"
        )
    if not math.isfinite(guidance):
        raise ValueError(f"guidance is {guidance}; a finite number is wanted")
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    x0 = to_tensor(small)
    streams = generators(seed, 1)
    eps = draw("gaussian", tuple(x0.shape), streams)[0]
    return NoiseLab(
        source=source,
        size=image.size,
        picture=small,
        model=model.name,
        seed=seed,
        times=times,
        schedules=schedules.look(x0, eps, times, schedules.compared(model.schedule)),
        walk=walk(x0, times, model.schedule if schedule is None else schedule, streams[0]),
        kinds=kinds.look(seed),
        spectrum=kinds.spectrum(x0),
        estimates=estimate.look(model, image, times, prompt, guidance, seed),
    )
