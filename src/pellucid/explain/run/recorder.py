"""Recording a run while the model draws.

`pipeline.generate` does not know of it: it gets a `Model` whose network, text towers and autoencoder
are copies that share their weights with the original, and one method of each copy records what it
does. A run that is not recorded costs nothing more.
"""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.arrangement import Region
from pellucid.diffusion import Conditioning
from pellucid.explain.run.record import Explanation, NetworkCall, RecordedStep, UpscalerCall, Word
from pellucid.explain.run.words import compared, word_schedule
from pellucid.latents import first_pass
from pellucid.model import Model
from pellucid.pipeline import Adapt, Progress, generate, plain
from pellucid.regions import box
from pellucid.request import Request, resolve
from pellucid.runtime import Runtime

MAP_SIDE = 16
"""Attention maps are kept with at most this many positions on a side."""
MAPS_BYTES = 2**28
"""If all attention maps of a run would need more, the heads of each layer are averaged."""

Module = TypeVar("Module", bound=nn.Module)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class WordAttention:
    """Keeps a part of the attention maps of one call of the network.

    That is the first row of the batch, which is the prompt's, or the first one of each region; the
    columns of its words and the sum of all others; at most `MAP_SIDE` positions on a side; the mean of
    the heads if `average`. A word of one region has no attention in the others.
    """

    def __init__(self, words: Sequence[Word], regions: Sequence[Region], average: bool) -> None:
        self.words = words
        self.regions = regions
        self.average = average
        self.kept: list[Tensor] = []

    def append(self, weights: Tensor, /) -> None:
        """weights: (B, heads, h, w, L)."""
        weights = weights.detach()
        if self.average:
            weights = weights.mean(1, keepdim=True)
        each = [weights[word.region, ..., word.place] for word in self.words]  # (heads, h, w)
        words = self.on_canvas(torch.stack(each, dim=1)).float()  # (heads, words, h, w)
        height, width = words.shape[2:]
        if max(height, width) > MAP_SIDE:
            scale = MAP_SIDE / max(height, width)
            size = (max(round(height * scale), 1), max(round(width * scale), 1))
            words = F.adaptive_avg_pool2d(words, size)
        rest = (1 - words.sum(1, keepdim=True)).clamp(min=0)
        kept = torch.cat([words, rest], dim=1).permute(0, 2, 3, 1)  # (heads, h', w', words + 1)
        self.kept.append(kept.to("cpu", torch.float16))

    def on_canvas(self, words: Tensor) -> Tensor:
        """Maps of regions as maps of the whole picture, each word's in its region."""
        if not self.regions:
            return words
        height, width = words.shape[2:]
        first = self.regions[0]
        size = round(height / first.height), round(width / first.width)
        canvas = words.new_zeros(*words.shape[:2], *size)
        for i, word in enumerate(self.words):
            rows, columns = box(self.regions[word.region], *size)
            canvas[:, i, rows, columns] = words[:, i]
        return canvas


class Recorder:
    """Records one run of `generate`:

        recorder = Recorder(model, request)
        for progress in recorder.run():
            ...
        explanation = recorder.explanation()

    adapt: as in `generate`. ValueError: a prompt without tokens, more than one picture.
    """

    def __init__(self, model: Model, request: Request, adapt: Adapt = plain) -> None:
        if request.count != 1:
            raise ValueError(f"count must be 1 to explain a picture, got {request.count}")
        # LoRAs and embeddings come first: a recorded part must be the part that draws.
        model, self.unmatched = adapt(model, request)
        self.original = model
        self.resolved = resolve(model, request)
        self.request = request.model_copy(update={"seed": self.resolved.seed})
        self.plan = word_schedule(model, self.resolved)
        self.steps: list[RecordedStep] = []
        self.calls: list[NetworkCall] = []
        self.upscaling: list[UpscalerCall] = []
        self.text: Conditioning | None = None
        self.start: Tensor | None = None
        self.last: Progress | None = None
        self.has_attention = "record" in inspect.signature(model.backbone.forward).parameters
        self.average = False
        self.seconds = {"text": 0.0, "network": 0.0, "decoder": 0.0}
        text_2, tiny, second = model.text_2, model.tiny_vae, model.second_stage
        self.seconds |= {} if second is None else {"upscaler": 0.0}
        self.model = replace(
            model,
            backbone=recorded(model.backbone, "forward", self.call_network),
            text=recorded(model.text, "forward", self.timed("text", model.text.forward)),
            text_2=text_2 and recorded(text_2, "forward", self.timed("text", text_2.forward)),
            vae=recorded(model.vae, "to_pixels", self.timed("decoder", model.vae.to_pixels)),
            tiny_vae=tiny and recorded(tiny, "to_pixels", self.timed("decoder", tiny.to_pixels)),
            second_stage=second and recorded(second, "forward", self.call_upscaler),
        )
        self.began = 0.0

    def run(self) -> Iterator[Progress]:
        """Draw, as `generate` does, and record it."""
        self.began = self.now()
        for progress in generate(self.model, self.request, lambda *_: (self.model, self.unmatched)):
            self.add(progress)
            yield progress

    def now(self) -> float:
        """Seconds, once the device has finished its work."""
        device = next(self.original.backbone.parameters()).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def timed(self, part: str, method: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """`method`, its time added to that of `part`."""

        def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            start = self.now()
            result = method(*args, **kwargs)
            self.seconds[part] += self.now() - start
            return result

        return run

    def call_network(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Call the network and record it. An inpainting network's x has more channels than the
        latents, which come first."""
        words = self.plan.words(len(self.steps), float(t[0]))
        maps = WordAttention(words, self.resolved.regions, self.average)
        start = self.now()
        network = self.original.backbone.forward
        output = network(x, t, cond, maps) if self.has_attention else network(x, t, cond)
        seconds = self.now() - start
        self.seconds["network"] += seconds
        latents = self.whole(x[:, : self.model.vae.config.latent_channels])
        self.calls.append(NetworkCall(latents, float(t[0]), words, tuple(maps.kept), seconds))
        if self.text is None:
            self.text = cond[: max(len(self.resolved.regions), 1)].to("cpu", torch.float32)
        return output

    def whole(self, x: Tensor) -> Tensor:
        """The latents of the picture that the network was called with, (C, h, w): of regions, put into
        the latest ones of the whole picture, as what lies between them is not the network's."""
        regions = self.resolved.regions
        if not regions:
            return as_kept(x[0])
        size = tuple(
            round(side / part)
            for side, part in zip(x.shape[2:], (regions[0].height, regions[0].width), strict=True)
        )
        before = self.noise() if self.last is None else self.last.x
        canvas = as_kept(before[0])
        if canvas.shape[1:] != size:  # a second pass begins
            canvas = F.interpolate(canvas[None], size)[0]
        for part, region in zip(x, regions, strict=False):  # what follows is without the text
            rows, columns = box(region, *size)
            canvas[:, rows, columns] = as_kept(part)
        return canvas

    def noise(self) -> Tensor:
        """The noisy latents that the run begins with, (1, C, h, w)."""
        runtime = Runtime(self.original)
        return first_pass(runtime, self.resolved, None, self.plan.passes[0][0]).x

    def call_upscaler(self, x: Tensor, t: Tensor, small: Tensor, noise: Tensor) -> Tensor:
        """Call the second stage and record it. Only its first enlargement is kept."""
        assert self.original.second_stage is not None
        calls, time = self.upscaling, float(t[0])
        residual = self.timed("upscaler", self.original.second_stage.forward)(x, t, small, noise)
        if calls and calls[-1].t <= time and calls[-1].small.shape == small.shape[1:]:
            calls.clear()  # it runs again in float32
        if not calls or calls[0].small.shape == small.shape[1:]:
            calls.append(UpscalerCall(as_kept(x[0]), time, as_kept(small[0]), as_kept(residual[0])))
        return residual

    def add(self, progress: Progress) -> None:
        """Add a step to the record."""
        calls, self.calls = self.calls, []
        self.last = progress
        if not calls or progress.parts is None:  # strength 0 draws nothing
            return
        call = calls[-1]
        if self.start is None:
            self.start = calls[0].x
            bytes_each = sum(2 * weights.numel() for weights in call.maps)
            self.average = bytes_each * progress.steps > MAPS_BYTES
        x0, cond, uncond = (as_kept(part[0]) for part in progress.parts)
        self.steps.append(
            RecordedStep(
                level=self.plan.level(call.t),
                x=call.x,
                words=call.words,
                x0=x0,
                cond=cond,
                uncond=uncond,
                maps=call.maps,
                after=as_kept(progress.x[0]),
                level_after=progress.level,
                evaluations=len(calls),
                seconds=sum(each.seconds for each in calls),
            )
        )
        if progress.images is not None:
            whole = self.now() - self.began
            self.seconds["rest"] = whole - sum(self.seconds.values())

    def explanation(
        self, words: Sequence[str] = (), synonyms: Sequence[tuple[str, str]] = ()
    ) -> Explanation:
        """The record of a finished run.

        words: those that the words of the prompt are compared with. synonyms: pairs of names for
        one thing, which show what the text encoder counts as the same.

        ValueError: the run is not finished, or it had no step.
        """
        last = self.last
        if last is None or last.images is None:
            raise ValueError("the run is not finished: there is no picture yet")
        if self.start is None or self.text is None:
            raise ValueError("strength is 0: no step was drawn, so there is nothing to explain")
        warnings = list(last.warnings)
        if not self.steps[-1].maps:
            warnings.append(
                f"{self.original.name} has no cross-attention: its attention maps cannot be shown"
            )
        near, space = compared(self.original, self.steps[0].words, words, synonyms)
        return Explanation(
            model=self.original.name,
            prediction=self.original.prediction,
            request=last.request,
            warnings=tuple(warnings),
            text=self.text,
            near=near,
            space=space,
            start=self.start,
            steps=tuple(self.steps),
            picture=last.images[0],
            upscaling=tuple(self.upscaling),
            seconds=dict(self.seconds),
        )


def recorded(part: Module, method: str, replacement: Callable[..., object]) -> Module:
    """A copy of a part that shares its weights, with one method replaced."""
    twin = copy.copy(part)
    vars(twin)[method] = replacement
    return twin


def as_kept(latents: Tensor) -> Tensor:
    """A copy on the CPU, float32."""
    return latents.detach().to("cpu", torch.float32, copy=True)
