"""Settings that suit a family of models, or a method that makes models fast.

A preset has the names of `Request`'s fields; None leaves a field as it was. A family's preset sets
all of them. Those of few-step models leave open what they take from the family, so that
`preset("lightning").over(preset("sdxl").over(model.defaults))` is SDXL-Lightning.

The families' files import torch, which takes seconds, so they are imported for a preset of a family
alone.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pellucid.plugins import choose

if TYPE_CHECKING:
    from pellucid.model import Defaults


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


# Guidance and sizes are those of the model cards' examples, which are diffusers' defaults where a
# card gives none. Most cards take 50 steps of PNDM or Euler; 25 of DPM++ 2M Karras come as near to the
# end of the path (diffusers' guide to schedulers, "20-25 steps"). "automatic" is Karras's spacing for
# that sampler, and the own one for others. Those of the families are in their files.
WITHOUT_FAMILY = {
    # the included model (`pellucid train pack`)
    "emoji": Preset(8, 3.0, "dpmpp_2m", "uniform", 256, 256),
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


def preset(name: str) -> Preset:
    """The preset of this name. ValueError lists the choices, nearest first."""
    choose(name, names(), "preset")
    if name in WITHOUT_FAMILY:
        return WITHOUT_FAMILY[name]
    from pellucid.checkpoints import families

    found = next(f.defaults[name] for f in families.known().values() if name in f.defaults)
    return Preset(**{each.name: getattr(found, each.name) for each in fields(Preset)})


def names() -> list[str]:
    """The names of all presets."""
    families = sys.modules.get("pellucid.checkpoints.families")
    if families is not None:
        of_families = [name for family in families.known().values() for name in family.defaults]
    else:
        files = (Path(__file__).parent / "checkpoints" / "families").glob("[!_]*.py")
        of_families = [name for file in sorted(files) for name in _written(file)]
    return [*of_families, *WITHOUT_FAMILY]


def _written(file: Path) -> Iterator[str]:
    """The names that the source of a family has in `defaults={...}`: importing it imports torch."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "defaults":
            keys = node.value.keys if isinstance(node.value, ast.Dict) else ()
            yield from (str(key.value) for key in keys if isinstance(key, ast.Constant))
