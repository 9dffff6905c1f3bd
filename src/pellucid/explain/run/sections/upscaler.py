"""The second stage: from a small picture to a large one."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pellucid import cascade
from pellucid.explain.run.record import Explanation, UpscalerCall
from pellucid.explain.run.sections._section import Content, Section
from pellucid.images.data_url import to_data_url
from pellucid.images.pixels import to_pil
from pellucid.model import Model

SECTION = Section(
    110, "end", "From a small picture to a large one", "Super-resolution", "more pixels", "picture"
)
SIDE = 256  # pixels of a picture in the page, at most
RANGE = 3  # a residual of this is shown as black or white


def content(model: Model, run: Explanation) -> Content | None:
    if model.second_stage is None or not run.upscaling:  # the small picture was asked for
        return None
    config, steps = model.second_stage.config, len(run.upscaling)
    return Content(
        f"<p>The first stage has drawn a small picture. A second diffusion model makes it "
        f"{config.factor} times as wide and high, in {steps} step{'s'[: steps > 1]}. Bicubic "
        "enlargement U gives most of the large picture. What it lacks is the residual r, above all "
        "along edges, and only that is diffused. The network starts from noise as large as the result, "
        "sees the small picture at every step, and estimates r. This needs few steps, because the "
        "small picture leaves little open.</p>",
        f"r = {config.residual_scale:g} (x<sub>large</sub> − U(x<sub>small</sub>)) &emsp; "
        "x = (1 − u) r + u ε &emsp; "
        f"picture = U(x<sub>small</sub>) + r̂ / {config.residual_scale:g}",
        [cascade.to_residual, cascade.to_large, cascade.sample],
        data_of(config, run.upscaling),
    )


def data_of(
    config: cascade.SuperResolutionConfig, calls: tuple[UpscalerCall, ...]
) -> dict[str, Any]:
    """The pictures of the stage: before, enlarged without it, and at each of its steps."""
    small = calls[0].small[None]

    def picture(residual: Tensor) -> str:
        large = cascade.to_large(residual[None], small, config)
        return url(cascade.sharpened(large, config.sharpen)[0])

    return {
        "small": url(small[0]),
        "size": [small.shape[3], small.shape[2]],
        "bicubic": url(cascade.to_large(torch.zeros_like(calls[0].x)[None], small, config)[0]),
        "sharpen": config.sharpen,
        "steps": [
            {
                "u": call.t / cascade.SCHEDULE.T,
                "x": url(call.x / RANGE),
                "residual": url(call.residual / RANGE),
                "picture": picture(call.residual),
            }
            for call in calls
        ],
    }


def url(pixels: Tensor) -> str:
    """Pixels (3, H, W) as a picture; 0 is grey."""
    picture = to_pil(pixels)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    # Lossless where single pixels are visible.
    small = max(picture.size) <= 64
    return to_data_url(picture, "PNG") if small else to_data_url(picture, "WEBP", 85)
