"""Settings that suit a family of models, or a method that makes models fast.

A preset has the names of `Request`'s fields; None leaves a field as it was. A family's preset sets
all of them. Those of few-step models leave open what they take from the family, so that
`preset("lightning").over(preset("sdxl").over(model.defaults))` is SDXL-Lightning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

from pellucid.checkpoints import families
from pellucid.model import Defaults
from pellucid.plugins import choose


@dataclass(frozen=True)
class Preset:
    """width and height are pixels; guidance 1 is none (what diffusers writes as 0)."""

    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    spacing: str | None = None
    width: int | None = None
    height: int | None = None

    def given(self) -> dict[str, int | float | str]:
        """The fields that it sets."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def over(self, defaults: Defaults) -> Defaults:
        """`defaults`, replaced by what the preset sets."""
        return replace(defaults, **self.given())  # type: ignore[arg-type]


def _few(steps: int, sampler: str, spacing: str, guidance: float = 1.0, side: int = 0) -> Preset:
    return Preset(steps, guidance, sampler, spacing, side or None, side or None)


def _whole(defaults: Defaults) -> Preset:
    return Preset(**{each.name: getattr(defaults, each.name) for each in fields(Preset)})


# Guidance and sizes are those of the model cards' examples, which are diffusers' defaults where a
# card gives none. Most cards take 50 steps of PNDM or Euler; 25 of DPM++ 2M Karras come as near to the
# end of the path (diffusers' guide to schedulers, "20-25 steps"). "automatic" is Karras's spacing for
# that sampler, and the own one for others. Those of the families are in their files.
FEW_STEPS = {
    # latent-consistency/lcm-lora-sdv1-5 and -sdxl: 4 to 8 steps, guidance 1 to 2
    "lcm": _few(4, "lcm", "lcm", guidance=1.5),
    # stabilityai/sd-turbo, sdxl-turbo: 1 to 4 steps, no guidance, 512 pixels both
    "turbo": _few(1, "euler_ancestral", "trailing", side=512),
    "turbo_4": _few(4, "euler_ancestral", "trailing", side=512),
    # ByteDance/SDXL-Lightning: as many steps as in the file's name, Euler, trailing, no guidance
    "lightning_2": _few(2, "euler", "trailing"),
    "lightning": _few(4, "euler", "trailing"),
    "lightning_8": _few(8, "euler", "trailing"),
    # ByteDance/Hyper-SD: DDIM, trailing, no guidance, as many steps as in the file's name; for the
    # one-step LoRA the card takes TCD, which in one step is DDIM
    "hyper_1": _few(1, "ddim", "trailing"),
    "hyper_2": _few(2, "ddim", "trailing"),
    "hyper_4": _few(4, "ddim", "trailing"),
    "hyper": _few(8, "ddim", "trailing"),
}
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        name: _whole(defaults)
        for family in families.known().values()
        for name, defaults in family.defaults.items()
    }
    # the embedded model (`pellucid train pack`)
    | {"emoji": _whole(Defaults(8, 3.0, "dpmpp_2m", "uniform", 256, 256))}
    | FEW_STEPS
)


def preset(name: str) -> Preset:
    """The preset of this name. ValueError lists the choices, nearest first."""
    return PRESETS[choose(name, PRESETS, "preset")]
