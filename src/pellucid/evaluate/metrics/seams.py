"""Does the grid of the latents show in the pictures?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pellucid.evaluate.evaluation import Evaluation, read_prompts


def measure(evaluation: Evaluation, count: int = 60) -> dict[str, Any]:
    """Of `count` pictures at the size of the art, and of the art itself."""
    art, prompts = evaluation.art, read_prompts("common")[:count]
    period = evaluation.model.vae.config.downsample
    drawn = evaluation.pixels([p.text for p in prompts])
    real = art.on_white([evaluation.numbers[p.concept] for p in prompts])
    return {"seams: pictures": seams(drawn, period), "seams: the art": seams(real, period)}


def seams(pixels: Tensor, period: int) -> float:
    """The mean step across the grid of `period` pixels, in the mean step inside of it.

    pixels: (B, 3, H, W). 1 where nothing is to be seen of the grid.
    """
    across = (pixels[..., :, 1:] - pixels[..., :, :-1]).abs().mean((0, 1, 2))
    down = (pixels[..., 1:, :] - pixels[..., :-1, :]).abs().mean((0, 1, 3))
    on, off = [], []
    for steps in (across, down):
        edge = (torch.arange(len(steps)) + 1) % period == 0
        on.append(steps[edge])
        off.append(steps[~edge])
    return float(torch.cat(on).mean() / torch.cat(off).mean())
