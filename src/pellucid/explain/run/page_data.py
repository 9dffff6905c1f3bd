"""The data of the page: latents decoded to small pictures, numbers packed into few bytes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pellucid.explain.run.record import Explanation, RecordedStep
from pellucid.guidance import signal_share
from pellucid.images.data_url import to_data_url
from pellucid.model import Model
from pellucid.preview import is_quick, preview
from pellucid.prompt import split_and


@dataclass(frozen=True)
class Detail:
    """How much of an explanation goes into the page."""

    side: int = 256
    """Pixels of a picture's longer side."""
    latents: int = 64
    """Latents on the longer side."""
    heads: bool = True
    """Every head's attention map; else the heads of each layer are averaged."""
    layers: bool = True
    """Every layer's attention map; else all are averaged."""
    every: int = 1
    """Every how many steps one is kept; the first and the last always are."""

    def steps(self, count: int) -> list[int]:
        """The indices of the steps that are kept, of `count`."""
        return [i for i in range(count) if i % self.every == 0 or i == count - 1]

    def omissions(self, explanations: Sequence[Explanation]) -> str:
        """What is left out, in words; "" if nothing is."""
        left = []
        steps = max(len(each.steps) for each in explanations)
        if self.every > 1:
            left.append(f"one step in {self.every} of {steps} is shown")
        if self.side < max(max(each.picture.size) for each in explanations):
            left.append(f"the pictures of the steps are at most {self.side} pixels wide")
        if any(each.steps[0].maps for each in explanations):
            if not self.layers:
                left.append("the attention maps of all layers are averaged")
            elif not self.heads:
                left.append("the attention maps of each layer's heads are averaged")
        return "" if not left else f"to keep the page under 5 MB, {', '.join(left)}"


LADDER = (
    Detail(),
    Detail(side=192, latents=32, heads=False),
    Detail(side=128, latents=32, heads=False),
    Detail(side=96, latents=24, heads=False, layers=False),
)


def details(steps: int) -> Iterator[Detail]:
    """From the most detail to the least, for a run of this many steps."""
    yield from LADDER
    for every in range(2, steps):
        yield replace(LADDER[-1], every=every)


class PageData:
    """The data of one explanation at any detail, as JSON values."""

    def __init__(self, model: Model, explanation: Explanation) -> None:
        self.explanation = explanation
        self.model = model
        self.decoded: dict[int, dict[str, Image.Image]] = {}

    def pictures(self, i: int) -> dict[str, Image.Image]:
        """The latents of step i as pictures."""
        if i not in self.decoded:
            step = self.explanation.steps[i]
            parts = {"x": step.x, "x0": step.x0, "cond": step.cond, "uncond": step.uncond}
            views = preview(self.model, torch.stack(list(parts.values())))
            self.decoded[i] = dict(zip(parts, views, strict=True))
        return self.decoded[i]

    def step(self, i: int, detail: Detail) -> dict[str, Any]:
        """The data of step i."""
        step = self.explanation.steps[i]
        pictures = {name: shrunk(one, detail.side) for name, one in self.pictures(i).items()}
        text = self.explanation.texts().index(step.words)
        return step_data(i, step, detail) | {"text": text, "seen": self.seen(i)} | pictures

    def seen(self, i: int) -> float:
        """How much the text changes the estimate that is shown: the mean difference of the pixels
        with the text and without it, of 255."""
        shown = self.pictures(i)
        with_text, without = (np.asarray(shown[name], float) for name in ("cond", "uncond"))
        return round(float(np.abs(with_text - without).mean()), 2)

    def estimated_bytes(self, detail: Detail) -> float:
        """About the size of `data`, estimated from a few steps."""
        count = len(self.explanation.steps)
        some = sorted({0, count // 3, 2 * count // 3})
        each = [len(json.dumps(self.step(i, detail))) for i in some]
        return len(json.dumps(self.without_steps(detail))) + len(detail.steps(count)) * sum(
            each
        ) / len(each)

    def data(self, detail: Detail) -> dict[str, Any]:
        """All data of the run."""
        kept = detail.steps(len(self.explanation.steps))
        return self.without_steps(detail) | {"steps": [self.step(i, detail) for i in kept]}

    def without_steps(self, detail: Detail) -> dict[str, Any]:
        """The data of the run as a whole."""
        run = self.explanation
        return {
            "model": run.model,
            "prompt": run.request.prompt,
            "guidance": run.request.guidance,
            "imageToImage": run.request.image is not None,
            "several": bool(run.request.mix) or len(split_and(run.request.prompt)) > 1,
            "facts": facts(run),
            "warnings": list(run.warnings),
            "rough": not is_quick(self.model.vae),
            "texts": [
                [
                    {
                        "text": word.text,
                        "id": word.id,
                        "weight": round(word.weight, 3),
                        "word": word.word,
                        "whole": word.whole,
                        "content": word.content,
                    }
                    for word in words
                ]
                for words in run.texts()
            ],
            "vectors": signed(run.text.tokens.flatten(0, 1)[:80, :256]),
            "width": run.text.tokens.shape[2],
            "start": latents(run.start, detail),
            "startPicture": shrunk(preview(self.model, run.start[None])[0], detail.side),
            "layers": layers(run.steps[0], detail),
            "count": len(run.steps),
            "picture": shrunk(run.picture, 2 * detail.side),
            "size": list(run.picture.size),
            "latent": latents(run.steps[-1].after, detail),
            "seconds": {part: round(seconds, 5) for part, seconds in run.seconds.items()},
        }


def step_data(i: int, step: RecordedStep, detail: Detail) -> dict[str, Any]:
    """The numbers of step i."""
    return {
        "number": i + 1,
        "t": round(step.level.t, 2),
        "alpha": round(step.level.alpha, 4),
        "sigma": round(step.level.sigma, 4),
        "clean": round(signal_share(step.level), 4),
        "alphaAfter": round(step.level_after.alpha, 4),
        "sigmaAfter": round(step.level_after.sigma, 4),
        "evaluations": step.evaluations,
        "seconds": round(step.seconds, 5),
        "eps": latents(step.eps_cond, detail),
        "epsUncond": latents(step.eps_uncond, detail),
        "difference": latents(step.difference, detail),
        "maps": [unsigned(weights) for weights in maps(step, detail)],
    }


def facts(run: Explanation) -> list[list[str]]:
    """The settings of the run: name and value."""
    request = run.request
    rows = {
        "Prompt": request.prompt,
        "Negative prompt": request.negative_prompt,
        "Model": run.model,
        "Seed": str(request.seed),
        "Steps": str(len(run.steps)),
        "Sampler": f"{request.sampler}, spacing {request.spacing}",
        "Guidance": f"{request.guidance:g}",
        "Size": f"{run.picture.width}×{run.picture.height}",
        "Starting picture": request.image or "",
    }
    return [[name, value] for name, value in rows.items() if value]


def shrunk(picture: Image.Image, side: int) -> str:
    """A picture at most `side` pixels wide and high, as a data: URL."""
    picture = picture.copy()
    picture.thumbnail((side, side), Image.Resampling.BOX)
    small = max(picture.size) <= 64  # lossless, because single pixels are visible
    return to_data_url(picture, "PNG") if small else to_data_url(picture, "WEBP", 80)


def layers(step: RecordedStep, detail: Detail) -> list[dict[str, Any]]:
    """The layers of the attention maps: name and number of heads."""
    kept = maps(step, detail)
    if len(kept) < len(step.maps):
        return [{"name": f"all {len(step.maps)} layers", "heads": 1}]
    return [
        {"name": f"layer {i}, {one.shape[2]}×{one.shape[1]}", "heads": one.shape[0]}
        for i, one in enumerate(kept, start=1)
    ]


def maps(step: RecordedStep, detail: Detail) -> list[Tensor]:
    """The attention maps of a step, each (heads, h, w, words + 1)."""
    kept = [weights.float() for weights in step.maps]
    if not detail.heads:
        kept = [weights.mean(0, keepdim=True) for weights in kept]
    if not detail.layers and kept:
        size = max((weights.shape[1:3] for weights in kept), key=lambda size: size[0] * size[1])
        flat = [
            F.interpolate(w[0].permute(2, 0, 1)[None], size, mode="nearest-exact") for w in kept
        ]
        kept = [torch.cat(flat).mean(0).permute(1, 2, 0)[None]]
    return kept


def latents(x: Tensor, detail: Detail) -> dict[str, Any]:
    """(C, h, w) as `signed`; large latents are subsampled."""
    scale = detail.latents / max(x.shape[1:])
    if scale < 1:
        size = [max(round(side * scale), 1) for side in x.shape[1:]]
        x = F.interpolate(x[None], size)[0]  # nearest: averaging would reduce the noise
    return signed(x)


def signed(x: Tensor) -> dict[str, Any]:
    """A tensor as int8, in steps of 1/127 of its largest absolute value."""
    return quantized(x, torch.int8)


def unsigned(x: Tensor) -> dict[str, Any]:
    """A tensor that is not negative as uint8, in steps of 1/255 of its largest value."""
    return quantized(x, torch.uint8)


def quantized(x: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """Shape, largest absolute value, and base64 of the values, scaled to the range of `dtype`."""
    largest = max(float(x.abs().max()), 1e-8)
    steps = (x / largest * torch.iinfo(dtype).max).round().to(dtype).contiguous()
    data = base64.b64encode(steps.numpy().tobytes()).decode()
    return {"shape": list(x.shape), "largest": float(f"{largest:.5g}"), "data": data}
