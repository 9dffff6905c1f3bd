"""Settings that suit a family of models, or a way in which a model was made fast.

A preset has the names of `Request`'s fields; None leaves a field as it was. A family says all of
them. Those of few-step models say nothing of what they have from the family beneath, so that
`preset("lightning").over(preset("sdxl").over(model.defaults))` is SDXL-Lightning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

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
        """The fields that it says something about."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def over(self, defaults: Defaults) -> Defaults:
        """`defaults` with what the preset says in their place."""
        return replace(defaults, **self.given())  # type: ignore[arg-type]


def _square(side: int, steps: int, guidance: float, sampler: str, spacing: str) -> Preset:
    return Preset(steps, guidance, sampler, spacing, side, side)


# Guidance and sizes are those of the model cards' examples, which are diffusers' defaults where a
# card says nothing. Most cards take 50 steps of PNDM or Euler; 25 of DPM++ 2M Karras come as near
# to the end of the path (diffusers' guide to schedulers, "20-25 steps"). "automatic" is Karras's
# spacing for that sampler, and lets another sampler have its own.
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        # huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5, CompVis/stable-diffusion-v1-4
        "sd1": _square(512, 25, 7.5, "dpmpp_2m", "automatic"),
        # stabilityai/stable-diffusion-2-1-base
        "sd2": _square(512, 25, 7.5, "dpmpp_2m", "automatic"),
        # stabilityai/stable-diffusion-2-1, whose card takes DPMSolverMultistep
        "sd2_768": _square(768, 25, 7.5, "dpmpp_2m", "automatic"),
        # stabilityai/stable-diffusion-xl-base-1.0; guidance as in StableDiffusionXLPipeline
        "sdxl": _square(1024, 30, 5.0, "dpmpp_2m", "automatic"),
        # stabilityai/stable-diffusion-xl-refiner-1.0
        "sdxl_refiner": _square(1024, 30, 5.0, "dpmpp_2m", "automatic"),
        # stabilityai/stable-diffusion-3-medium-diffusers: 28 steps, 7.0, flow matching with shift 3
        "sd3": _square(1024, 28, 7.0, "euler", "linspace"),
        # the embedded model (`pellucid train pack`)
        "emoji": _square(64, 20, 5.0, "dpmpp_2m", "uniform"),
        # latent-consistency/lcm-lora-sdv1-5 and -sdxl: 4 to 8 steps, guidance 1 to 2
        "lcm": Preset(steps=4, guidance=1.5, sampler="lcm", spacing="lcm"),
        # stabilityai/sd-turbo, sdxl-turbo: 1 to 4 steps, no guidance, 512 pixels both
        "turbo": _square(512, 1, 1.0, "euler_ancestral", "trailing"),
        "turbo_4": _square(512, 4, 1.0, "euler_ancestral", "trailing"),
        # ByteDance/SDXL-Lightning: as many steps as in the file's name, Euler, trailing, no guidance
        "lightning_2": Preset(2, 1.0, "euler", "trailing"),
        "lightning": Preset(4, 1.0, "euler", "trailing"),
        "lightning_8": Preset(8, 1.0, "euler", "trailing"),
        # ByteDance/Hyper-SD: DDIM, trailing, no guidance, as many steps as in the file's name; of the
        # one-step LoRA the card takes TCD, which in one step is DDIM
        "hyper_1": Preset(1, 1.0, "ddim", "trailing"),
        "hyper_2": Preset(2, 1.0, "ddim", "trailing"),
        "hyper_4": Preset(4, 1.0, "ddim", "trailing"),
        "hyper": Preset(8, 1.0, "ddim", "trailing"),
    }
)


def preset(name: str) -> Preset:
    """The preset of this name. ValueError lists the choices, nearest first."""
    return PRESETS[choose(name, PRESETS, "preset")]
