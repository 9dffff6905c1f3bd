"""Samplers: the ways to take the noise away again. One file each; the stem is the public name.

A sampler is a generator function
``sample(denoise, x, levels, noise, **options) -> Iterator[Step]``. It walks the levels in pairs,
asks `denoise` for an estimate of x0, moves x to the next level, and yields. Progress, previews and
cancelling are the caller's ``for`` loop.

A sampler's file also says ORDER (how the error of a deterministic solver falls with the step; None
for one that adds noise) and ALIASES (the names that people know from other programs). Where it is
not so for all, it says too: SPACING, the spacing that suits it best, which "automatic" means
("uniform"); SKIP_PENULTIMATE, the spacings of which the last but one of the levels is left out (none):
all of them in A1111's DPM2, and "linspace" and "leading" in the multistep solvers, which diffusers
spaces so; ENDS_FIRST, the spacings that end at t = 0, with a little noise left (none): "leading" in
DDIM and PLMS, as in the original code, and in DEIS those of diffusers.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from torch import Tensor

from pellucid import plugins
from pellucid.schedule import Level, Schedule
from pellucid.schedule import spacing_named as schedule_spacing

Noise = Callable[[Tensor], Tensor]
"""x -> fresh noise of x's shape."""


class Step(NamedTuple):
    """Where a sampler is: x at `level`, and the estimate of x0 that took it there."""

    x: Tensor
    x0: Tensor
    level: Level


# What A1111 appends to a sampler's name, and the spacing that it means here.
SUFFIXES = {
    "automatic": "automatic",
    "uniform": "uniform",
    "karras": "karras",
    "exponential": "exponential",
    "polyexponential": "exponential",
    "sgm uniform": "sgm_uniform",
    "kl optimal": "kl_optimal",
    "align your steps": "align_your_steps",
    "simple": "simple",
    "normal": "uniform",
    "ddim": "ddim",
    "beta": "beta",
    "ka": "karras",  # k_dpmpp_2m_ka
}


def ancestral(s: float, s_after: float, eta: float) -> tuple[float, float]:
    """(down, up): step to s = sigma / alpha = down, then noise of deviation up leads to s_after.

    eta: how much of the noise is fresh. s may be infinite.
    """
    up = min(s_after, eta * s_after * max(1 - (s_after / s) ** 2, 0) ** 0.5)
    return (s_after**2 - up**2) ** 0.5, up


def names() -> tuple[str, ...]:
    """The public names of all samplers."""
    return tuple(plugins.discover(__name__))


def get(name: str) -> ModuleType:
    """The sampler's module, by its public name. ValueError lists the choices, nearest first."""
    found = plugins.discover(__name__)
    return found[plugins.choose(name, found, "sampler")]


def resolve(name: str) -> tuple[str, str | None]:
    """(sampler, spacing or None) for a public name or one of another program.

    "dpmpp_2m" -> ("dpmpp_2m", None); "DPM++ 2M Karras" -> ("dpmpp_2m", "karras"). The spacing may
    be "automatic".
    ValueError lists the choices, nearest first.
    """
    found = plugins.discover(__name__)
    known = {stem: stem for stem in found}
    for stem, module in found.items():
        known |= {alias.lower(): stem for alias in module.ALIASES}
    wanted = name.strip().lower()
    if wanted in known:
        return known[wanted], None
    spaced = wanted.replace("_", " ")
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        start = wanted[: -len(suffix) - 1]
        if spaced.endswith(" " + suffix) and start in known:
            return known[start], SUFFIXES[suffix]
    plugins.choose(name, found, "sampler")
    raise AssertionError("a known name was not resolved")


def spacing_named(name: str) -> str:
    """As `schedule.spacing_named`, and "automatic" besides."""
    return "automatic" if name.strip().lower() == "automatic" else schedule_spacing(name)


def spacing_of(name: str, spacing: str, schedule: Schedule) -> str:
    """The spacing's plain name; "automatic" is the sampler's own, or of flow "uniform".

    "ddim" is DDIM's and PLMS's own, "leading", in these. spacing: one of `schedule.SPACINGS`, of
    another program, or "automatic". ValueError lists the choices, nearest first.
    """
    plain, own = spacing_named(spacing), getattr(get(name), "SPACING", "uniform")
    if plain == "ddim" and own == "leading":
        return own
    if plain != "automatic":
        return plain
    return "uniform" if schedule.name == "flow" else own


def levels_for(
    name: str, schedule: Schedule, steps: int, spacing: str = "automatic"
) -> list[Level]:
    """The steps + 1 levels of a run of this sampler; see `Schedule.levels`."""
    sampler, plain = get(name), spacing_of(name, spacing, schedule)
    return schedule.levels(
        steps,
        plain,
        "first" if plain in getattr(sampler, "ENDS_FIRST", ()) else "clean",
        skip_penultimate=plain in getattr(sampler, "SKIP_PENULTIMATE", ()),
    )
