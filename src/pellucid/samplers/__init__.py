"""Samplers: the ways to take the noise away again. One file each; the stem is the public name.

A sampler is a generator function
``sample(denoise, x, levels, noise, **options) -> Iterator[Step]``. It walks the levels in pairs,
asks `denoise` for an estimate of x0, moves x to the next level, and yields. Progress, previews and
cancelling are the caller's ``for`` loop.

A sampler's file also says ORDER (how the error of a deterministic solver falls with the step; None
for one that adds noise) and ALIASES (the names that people know from other programs).
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from torch import Tensor

from pellucid import plugins
from pellucid.schedule import Level

Noise = Callable[[Tensor], Tensor]
"""x -> fresh noise of x's shape."""


class Step(NamedTuple):
    """Where a sampler is: x at `level`, and the estimate of x0 that took it there."""

    x: Tensor
    x0: Tensor
    level: Level


# What A1111 appends to a sampler's name, and the spacing that it means here.
SUFFIXES = {
    "karras": "karras",
    "exponential": "exponential",
    "uniform": "uniform",
    "sgm uniform": "trailing",
    "align your steps": "align_your_steps",
    "beta": "beta",
}


def names() -> tuple[str, ...]:
    """The public names of all samplers."""
    return tuple(plugins.discover(__name__))


def get(name: str) -> ModuleType:
    """The sampler's module, by its public name. ValueError lists the choices, nearest first."""
    found = plugins.discover(__name__)
    return found[plugins.choose(name, found, "sampler")]


def resolve(name: str) -> tuple[str, str | None]:
    """(sampler, spacing or None) for a public name or one of another program.

    "dpmpp_2m" -> ("dpmpp_2m", None); "DPM++ 2M Karras" -> ("dpmpp_2m", "karras").
    ValueError lists the choices, nearest first.
    """
    found = plugins.discover(__name__)
    known = {stem: stem for stem in found}
    for stem, module in found.items():
        known |= {alias.lower(): stem for alias in module.ALIASES}
    wanted = name.strip().lower()
    if wanted in known:
        return known[wanted], None
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        start = wanted.removesuffix(suffix).rstrip(" _")
        if wanted.endswith(suffix) and start in known:
            return known[start], SUFFIXES[suffix]
    plugins.choose(name, found, "sampler")
    raise AssertionError("a known name was not resolved")
