"""What a page shows of an explanation: its latents made visible, its numbers packed small."""

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

from pellucid.explain.run.record import Explanation, Step
from pellucid.guidance import progress
from pellucid.images.data_url import to_data_url
from pellucid.model import Model
from pellucid.preview import is_quick, preview
from pellucid.prompt import split_and

NEAR = 12
"""Nearest words that are shown."""


@dataclass(frozen=True)
class Detail:
    """How much of a record goes into a page."""

    side: int = 256
    """Pixels of a picture's longer side."""
    latents: int = 64
    """Places of the latents on the longer side."""
    heads: bool = True
    """Every head's map; else the heads of each layer are averaged."""
    layers: bool = True
    """Every layer's map; else all are averaged."""
    every: int = 1
    """One step in so many; the first and the last are there anyway."""

    def steps(self, count: int) -> list[int]:
        """The steps that are shown of so many, counted from 0."""
        return [i for i in range(count) if i % self.every == 0 or i == count - 1]

    def told(self, explanations: Sequence[Explanation]) -> str:
        """What is left out, in words; "" if nothing."""
        left = []
        steps = max(len(each.steps) for each in explanations)
        if self.every > 1:
            left.append(f"one step in {self.every} of {steps} is shown")
        if self.side < max(max(each.picture.size) for each in explanations):
            left.append(f"the pictures on the way are at most {self.side} pixels wide")
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
    """From the most that may be shown to the least."""
    yield from LADDER
    for every in range(2, steps):
        yield replace(LADDER[-1], every=every)


class PageData:
    """An explanation with its latents made visible, at any detail."""

    def __init__(self, model: Model, explanation: Explanation) -> None:
        self.explanation = explanation
        self.model = model
        self.seen: dict[int, dict[str, Image.Image]] = {}

    def frames(self, i: int) -> dict[str, Image.Image]:
        """The pictures of step i."""
        if i not in self.seen:
            step = self.explanation.steps[i]
            parts = {"x": step.x, "x0": step.x0, "cond": step.cond, "uncond": step.uncond}
            views = preview(self.model, torch.stack(list(parts.values())))
            self.seen[i] = dict(zip(parts, views, strict=True))
        return self.seen[i]

    def step(self, i: int, detail: Detail) -> dict[str, Any]:
        """Step i as JSON values."""
        step = self.explanation.steps[i]
        pictures = {name: shrunk(frame, detail.side) for name, frame in self.frames(i).items()}
        text = self.explanation.texts().index(step.words)
        return step_data(i, step, detail) | {"text": text} | pictures

    def guess(self, detail: Detail) -> float:
        """About how many bytes `data` has: a few steps stand for all."""
        count = len(self.explanation.steps)
        some = sorted({0, count // 3, 2 * count // 3})
        each = [len(json.dumps(self.step(i, detail))) for i in some]
        whole = len(json.dumps(self.frame(detail)))
        return whole + len(detail.steps(count)) * sum(each) / len(each)

    def data(self, detail: Detail) -> dict[str, Any]:
        """All that the page shows of this run, as JSON values."""
        kept = detail.steps(len(self.explanation.steps))
        return self.frame(detail) | {"steps": [self.step(i, detail) for i in kept]}

    def frame(self, detail: Detail) -> dict[str, Any]:
        """All but the steps."""
        told = self.explanation
        return {
            "model": told.model,
            "prompt": told.request.prompt,
            "guidance": told.request.guidance,
            "redrawn": told.request.image is not None,
            "several": bool(told.request.mix) or len(split_and(told.request.prompt)) > 1,
            "facts": facts(told),
            "warnings": list(told.warnings),
            "rough": not is_quick(self.model.vae),
            "texts": [
                [{"text": w.text, "id": w.id, "weight": round(w.weight, 3)} for w in words]
                for words in told.texts()
            ],
            "near": [[word, round(cosine, 4)] for word, cosine in told.near[:NEAR]],
            "vectors": numbers(told.text.tokens[0, :80, :256]),
            "width": told.text.tokens.shape[2],
            "start": latents(told.start, detail),
            "startPicture": shrunk(preview(self.model, told.start[None])[0], detail.side),
            "layers": layers(told.steps[0], detail),
            "count": len(told.steps),
            "picture": shrunk(told.picture, 2 * detail.side),
            "size": list(told.picture.size),
            "latent": latents(told.steps[-1].after, detail),
            "seconds": {part: round(seconds, 5) for part, seconds in told.seconds.items()},
        }


def step_data(i: int, step: Step, detail: Detail) -> dict[str, Any]:
    """The numbers of a step; `i` counts from 0."""
    return {
        "number": i + 1,
        "t": round(step.level.t, 2),
        "alpha": round(step.level.alpha, 4),
        "sigma": round(step.level.sigma, 4),
        "clean": round(progress(step.level), 4),
        "alphaAfter": round(step.level_after.alpha, 4),
        "sigmaAfter": round(step.level_after.sigma, 4),
        "looks": step.evaluations,
        "seconds": round(step.seconds, 5),
        "eps": latents(step.eps_cond, detail),
        "epsUncond": latents(step.eps_uncond, detail),
        "difference": latents(step.difference, detail),
        "maps": [shares(weights) for weights in maps(step, detail)],
    }


def facts(told: Explanation) -> list[list[str]]:
    """What the run was, for a person: name and value."""
    request = told.request
    rows = {
        "Prompt": request.prompt,
        "Without": request.negative_prompt,
        "Model": told.model,
        "Seed": str(request.seed),
        "Steps": str(len(told.steps)),
        "Sampler": f"{request.sampler}, spacing {request.spacing}",
        "Guidance": f"{request.guidance:g}",
        "Size": f"{told.picture.width}×{told.picture.height}",
        "From the picture": request.image or "",
    }
    return [[name, value] for name, value in rows.items() if value]


def shrunk(picture: Image.Image, side: int) -> str:
    """A picture at most `side` pixels wide and high, as a data: URL."""
    picture = picture.copy()
    picture.thumbnail((side, side), Image.Resampling.BOX)
    small = max(picture.size) <= 64  # where each pixel counts
    return to_data_url(picture, "PNG") if small else to_data_url(picture, "WEBP", 80)


def layers(step: Step, detail: Detail) -> list[dict[str, Any]]:
    """The layers whose maps are shown: a name, how many heads."""
    kept = maps(step, detail)
    if len(kept) < len(step.maps):
        return [{"name": f"all {len(step.maps)} layers", "heads": 1}]
    return [
        {"name": f"layer {i}, {one.shape[2]}×{one.shape[1]} places", "heads": one.shape[0]}
        for i, one in enumerate(kept, start=1)
    ]


def maps(step: Step, detail: Detail) -> list[Tensor]:
    """The attention maps that are shown, each (heads, h, w, words + 1)."""
    kept = [weights.float() for weights in step.maps]
    if not detail.heads:
        kept = [weights.mean(0, keepdim=True) for weights in kept]
    if not detail.layers and kept:
        size = max((weights.shape[1:3] for weights in kept), key=lambda size: size[0] * size[1])
        flat = [F.interpolate(w[0].permute(2, 0, 1)[None], size, mode="bilinear") for w in kept]
        kept = [torch.cat(flat).mean(0).permute(1, 2, 0)[None]]
    return kept


def latents(x: Tensor, detail: Detail) -> dict[str, Any]:
    """(C, h, w) as `numbers`, of large ones a part of the places."""
    scale = detail.latents / max(x.shape[1:])
    if scale < 1:
        size = [max(round(side * scale), 1) for side in x.shape[1:]]
        x = F.interpolate(x[None], size)[0]  # the nearest: a mean of noise would be less noise
    return numbers(x)


def numbers(x: Tensor) -> dict[str, Any]:
    """A tensor in steps of 1/127 of its largest number: shape, that number, base64 of int8."""
    largest = max(float(x.abs().max()), 1e-8)
    steps = (x / largest * 127).round().to(torch.int8).numpy()
    return {"shape": list(x.shape), "largest": float(f"{largest:.5g}"), "data": encoded(steps)}


def shares(x: Tensor) -> dict[str, Any]:
    """As `numbers` for what is not negative: base64 of uint8 in steps of 1/255."""
    largest = max(float(x.max()), 1e-8)
    steps = (x / largest * 255).round().to(torch.uint8).numpy()
    return {"shape": list(x.shape), "largest": float(f"{largest:.5g}"), "data": encoded(steps)}


def encoded(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
