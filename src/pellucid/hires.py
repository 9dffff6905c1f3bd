"""Enlarging a picture before a second pass adds detail to it.

A network that was trained on small pictures repeats itself in large ones. So the first pass fixes
the composition at the trained size; the second, from less than full noise, adds detail.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from PIL import Image

from pellucid.folders import WEIGHTS
from pellucid.plugins import choose

if TYPE_CHECKING:
    from torch import Tensor

# Latents are enlarged directly (A1111's "Latent ..."): (interpolation, antialias).
LATENT = {
    "latent": ("bilinear", False),
    "latent_antialiased": ("bilinear", True),
    "latent_bicubic": ("bicubic", False),
    "latent_bicubic_antialiased": ("bicubic", True),
    "latent_nearest": ("nearest", False),
    "latent_nearest_exact": ("nearest-exact", False),
}
# Pictures are decoded, enlarged and encoded again.
PICTURE = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}
DIFFUSION = "diffusion"  # the second stage of a model
UPSCALERS = (*LATENT, *PICTURE, DIFFUSION)


def resolve(name: str) -> str:
    """The public name for one of A1111's: "Latent (bicubic)" -> "latent_bicubic".

    The file of an upscaler stays as it is. ValueError lists the choices, nearest first.
    """
    if is_file(name):
        return name
    plain = re.sub(r"\W+", "_", name.lower()).strip("_")
    return plain if plain in UPSCALERS else choose(name, UPSCALERS, "hires upscaler")


def is_file(name: str) -> bool:
    """Whether it is the file of an upscaler (`Model.upscaler`)."""
    return name.lower().endswith(WEIGHTS)


def must_open(name: str, own: bool) -> bool:
    """Whether this upscaler is in another file than the model; `own`: it has a second stage itself."""
    return is_file(name) or (name == DIFFUSION and not own)


def enlarge_latents(latents: Tensor, width: int, height: int, name: str) -> Tensor:
    """Latents (B, C, h, w) -> (B, C, height, width) by an upscaler of LATENT."""
    import torch.nn.functional as F

    mode, antialias = LATENT[name]
    return F.interpolate(latents, (height, width), mode=mode, antialias=antialias)


def whole_steps(steps: int, strength: float) -> int:
    """How many steps a whole run has of which the last `steps` are the fraction `strength`."""
    return int(steps / strength + 1e-6)
