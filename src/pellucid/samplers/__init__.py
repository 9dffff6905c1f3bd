"""Samplers: numerical solvers that remove the noise step by step. One file each; the stem is the
public name.

A sampler is a generator function
``sample(denoise, x, levels, noise, **options) -> Iterator[Step]``. It walks the levels in pairs,
asks `denoise` for an estimate of x0, moves x to the next level, and yields. Progress, previews and
cancelling are the caller's ``for`` loop. Next to it, a file declares its `SamplerSpec` as ``SPEC``.

The stochastic samplers draw their noise step by step. For the DPM++ SDE samplers, A1111, k-diffusion
and diffusers take it from a Brownian tree with a separate generator (torchsde), so the same seed gives
a different picture than in A1111.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pellucid import plugins
from pellucid.schedule import SPACINGS, Level, Schedule
from pellucid.schedule import spacing_named as schedule_spacing

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.guidance import GuidedDenoiser

Noise: TypeAlias = "Callable[[Tensor], Tensor]"
"""x -> fresh noise of x's shape."""


class Step(NamedTuple):
    """The state after a step: x, its level, and the x0 estimate that was used."""

    x: Tensor
    x0: Tensor
    level: Level


@dataclass(frozen=True)
class SamplerSpec:
    """What a sampler's file declares. ValueError for a value that makes no sense."""

    order: int | None
    """How the error of a deterministic solver falls with the step; None for one that adds noise."""
    aliases: tuple[str, ...]
    """The names that people know from other programs."""
    spacing: str = "uniform"
    """The spacing that suits it best, which "automatic" means."""
    skip_penultimate: tuple[str, ...] = ()
    """Spacings that leave out the last but one of the levels: all of them in A1111's DPM2, and
    "linspace" and "leading" in the multistep solvers, as in diffusers."""
    ends_first: tuple[str, ...] = ()
    """Spacings that end at t = 0, with a little noise left: "leading" in DDIM and PLMS, as in the
    original code, and in DEIS those of diffusers."""
    guidance: float | None = None
    """The guidance scale where a request leaves it open; None: the model's default."""
    guided: bool = False
    """Whether `sample` takes a `GuidedDenoiser`, to see what an estimate was made of (CFG++)."""
    adaptive: bool = False
    """Whether the pictures of a batch decide together which steps are taken."""

    def __post_init__(self) -> None:
        if self.order not in (None, 1, 2, 3, 4):
            raise ValueError(f"order must be None or from 1 to 4, got {self.order}")
        if not self.aliases:
            raise ValueError("aliases must hold at least one name")
        for name in (self.spacing, *self.skip_penultimate, *self.ends_first):
            plugins.choose(name, SPACINGS, "spacing")


class Sampler(NamedTuple):
    """A file in this folder."""

    name: str
    spec: SamplerSpec
    sample: Callable[..., Iterator[Step]]
    doc: str
    """The equations, in words."""

    def steps(
        self,
        guided: GuidedDenoiser,
        x: Tensor,
        levels: Sequence[Level],
        noise: Noise,
        **options: Any,
    ) -> Iterator[Step]:
        """`sample`, with what it needs of a guided denoiser: only x0, or everything."""
        from pellucid.guidance import as_denoiser

        denoise = guided if self.spec.guided else as_denoiser(guided)
        return self.sample(denoise, x, levels, noise, **options)


# What A1111, NovelAI, InvokeAI and Draw Things append to the name of a sampler, and the spacing here.
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
    "trailing": "trailing",
    "turbo": "trailing",
    "ays": "align_your_steps",
    "ka": "karras",  # k_dpmpp_2m_ka
    "k": "karras",  # dpmpp_2m_k
}
_WHERE = re.compile(r"[ _]gpu(?![a-z0-9])")  # where ComfyUI draws the noise, not another sampler


def ancestral(s: float, s_after: float, eta: float) -> tuple[float, float]:
    """(down, up): step to s = sigma / alpha = down, then noise of deviation up leads to s_after.

    eta: how much of the noise is fresh. s may be infinite.
    """
    up = min(s_after, eta * s_after * max(1 - (s_after / s) ** 2, 0) ** 0.5)
    return (s_after**2 - up**2) ** 0.5, up


def names() -> tuple[str, ...]:
    """The public names of all samplers."""
    return tuple(plugins.discover(__name__))


def get(name: str) -> Sampler:
    """A sampler by its public name.

    ValueError lists the choices, nearest first. TypeError for a file that declares no `SPEC`.
    """
    found = plugins.discover(__name__)
    return _checked(plugins.choose(name, found, "sampler"), found[name])


def _checked(name: str, module: ModuleType) -> Sampler:
    spec, sample = vars(module).get("SPEC"), vars(module).get("sample")
    if not isinstance(spec, SamplerSpec) or not callable(sample):
        raise TypeError(f"{module.__file__} must define SPEC = SamplerSpec(...) and sample(...)")
    return Sampler(name, spec, sample, (module.__doc__ or "").strip())


def resolve(name: str) -> tuple[str, str | None]:
    """(sampler, spacing or None) for a public name or one of another program.

    "dpmpp_2m" -> ("dpmpp_2m", None); "DPM++ 2M Karras" -> ("dpmpp_2m", "karras"). The spacing may
    be "automatic". ValueError lists the choices; those that are nearest under any name come first.
    """
    found = plugins.discover(__name__)
    if name in found.names:
        return name, None
    known = {stem: stem for stem in found}
    for stem, module in found.items():
        known |= {alias.lower(): stem for alias in _checked(stem, module).spec.aliases}
    plain = _WHERE.sub("", name.strip().lower())
    if re.match(r"dpm\+\+\d", plain):  # stable-diffusion.cpp's
        plain = plain.replace("++", "pp_")
    if plain in known:
        return known[plain], None
    spaced = plain.replace("_", " ")
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        start = plain[: -len(suffix) - 1]
        if spaced.endswith(" " + suffix) and start in known:
            return known[start], SUFFIXES[suffix]
    near = dict.fromkeys(known[each] for each in plugins.nearest(name, known))
    raise plugins.unknown(name, near, "sampler")


def spacing_named(name: str) -> str:
    """Like `schedule.spacing_named`, but "automatic" is allowed too."""
    return "automatic" if name.strip().lower() == "automatic" else schedule_spacing(name)


def spacing_of(name: str, spacing: str, schedule: Schedule) -> str:
    """The spacing's plain name; "automatic" is the sampler's own, but "uniform" for flow.

    "ddim" is what DDIM and PLMS use themselves, "leading", in these. spacing: one of
    `schedule.SPACINGS`, of another program, or "automatic". ValueError lists the choices, nearest
    first.
    """
    plain, own = spacing_named(spacing), get(name).spec.spacing
    if plain == "ddim" and own == "leading":
        return own
    if plain != "automatic":
        return plain
    return "uniform" if schedule.name == "flow" else own


def levels_for(
    name: str, schedule: Schedule, steps: int, spacing: str = "automatic"
) -> list[Level]:
    """The steps + 1 levels of a run of this sampler; see `Schedule.levels`."""
    spec, plain = get(name).spec, spacing_of(name, spacing, schedule)
    return schedule.levels(
        steps,
        plain,
        "first" if plain in spec.ends_first else "clean",
        skip_penultimate=plain in spec.skip_penultimate,
    )
