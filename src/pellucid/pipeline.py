"""From a request to pictures.

Text to image, image to image, inpainting, mixing, variations, a second pass at a larger size: the
same loop, ``for step in sampler.steps(...)``. To stop is to stop iterating. `plan` decides what is
done, `latents` where each pass begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from pellucid import hires, inpaint, latents, samplers
from pellucid.conditioning import StepConditioning, conditioning_schedule
from pellucid.diffusion import Network, predictor
from pellucid.forecast import Forecast
from pellucid.guidance import (
    ByStep,
    ClassifierFree,
    GuidedDenoiser,
    Parts,
    Recorded,
    clip_guidance,
)
from pellucid.images.pixels import to_pil
from pellucid.inpaint import Canvas
from pellucid.latents import Begin
from pellucid.layers import composed
from pellucid.model import Model
from pellucid.noise import draw, source
from pellucid.plan import Plan, no_forecast, no_more_forecasts, planned
from pellucid.preview import decoder_of
from pellucid.progress import stage
from pellucid.regions import Regional
from pellucid.request import Request, ResolvedRequest, chosen_seed, resolve
from pellucid.runtime import Runtime
from pellucid.runtime.devices import free_memory
from pellucid.samplers import Step
from pellucid.schedule import Level

# The largest batches, in pictures and in pixels: on a CPU 8 pictures of 64x64, on a GPU 8 of 512x512.
# Larger ones are hardly faster, and every picture waits for its batch.
CPU_BATCH, GPU_BATCH = (8, 2**15), (64, 2**21)


@dataclass(frozen=True)
class Progress:
    """Where a run is, after each step."""

    step: int
    """1 .. steps."""
    steps: int
    level: Level
    """The level that was reached."""
    x: Tensor
    """The noisy latents, (count, C, h, w)."""
    x0: Tensor
    """The estimate of the clean latents that this step used, of the same shape."""
    parts: Parts | None
    """The guided, conditional and unconditional estimates; their difference is the guidance. None
    where the network was not used (image to image with strength 0)."""
    request: ResolvedRequest
    seeds: tuple[int, ...]
    warnings: tuple[str, ...]
    images: list[Image.Image] | None = None
    """The pictures, at the last step."""

    @property
    def difference(self) -> Tensor | None:
        """What the text changes in the estimate, cond - uncond: zero without guidance, None where
        there are no parts."""
        return None if self.parts is None else self.parts.cond - self.parts.uncond

    def each(self) -> Iterator[Progress]:
        """That of each request of the batch."""
        first = 0
        for request in self.request.members:
            own = slice(first, first + request.count)
            yield replace(
                self,
                x=self.x[own],
                x0=self.x0[own],
                parts=None if self.parts is None else Parts(*(part[own] for part in self.parts)),
                request=request,
                seeds=self.seeds[own],
                images=None if self.images is None else self.images[own],
            )
            first += request.count


Adapt = Callable[[Model, Request], tuple[Model, tuple[str, ...]]]
"""Applies to a model what a request names, and reports what did not match: `adapters.adapt`."""


@torch.no_grad()
def generate(
    model: Model,
    request: Request,
    adapt: Adapt | None = None,
    refiner: Model | None = None,
    others: Sequence[Request] = (),
) -> Iterator[Progress]:
    """Draw, and report after every step; the last Progress has the pictures.

    adapt: opens the LoRAs and embeddings that the request names; without it there may be none.
    refiner: the model that the request names as its refiner. others: requests with the same
    `plan.batch_key`, whose pictures are drawn in the same batch; `Progress.each` separates them, and
    its warnings are those of the run, without those that `plan.warnings_of` gives for each request.
    Raises ValueError: a size or a setting that this model cannot do, a picture that cannot be read,
    a refiner that cannot continue with this model's latents.
    """
    model, unmatched = plain(model, request) if adapt is None else adapt(model, request)
    asked, request = request, resolve(model, request)
    if others:
        request = request.model_copy(update={"others": tuple(resolve(model, o) for o in others)})
    plan = planned(model, asked, request, refiner)
    runtime = Runtime(model, [*unmatched, *plan.warnings])
    total = plan.steps
    with stage("step", total) as now:
        for number, (step, parts) in enumerate(steps_of(runtime, refiner, plan)):
            now.done = min(number, total - 1)  # what follows the last step belongs to it
            if not torch.isfinite(step.x).all():
                raise ValueError(
                    f"step {number} of {total} gave numbers that are not finite; use a lower "
                    f"guidance than {request.guidance:g} or another sampler than "
                    f"{request.sampler!r}"
                )
            if number == 0 < total:  # the start
                continue
            last = number == total
            yield Progress(
                step=number,
                steps=total,
                level=step.level,
                x=step.x,
                x0=step.x0,
                parts=parts,
                request=request,
                seeds=tuple(request.seeds),
                images=finished(runtime, plan, step.x) if last else None,
                warnings=tuple(runtime.warnings),
            )


def generate_in_batches(
    model: Model, request: Request, adapt: Adapt | None = None, refiner: Model | None = None
) -> Iterator[Progress]:
    """As `generate`, for any number of pictures: batch after batch, each with its last step.

    Every picture is as in one batch, and memory does not grow with their number. LoRAs and
    embeddings are opened once.
    """
    request = request.model_copy(update={"seed": chosen_seed(request)})  # one for all batches
    model, unmatched = plain(model, request) if adapt is None else adapt(model, request)
    size = batch_size(Runtime(model), resolve(model, request))
    for first in range(0, request.count, size):
        whole = size >= request.count  # warnings are about the request as it was asked
        part = request if whole else request.part(first, min(size, request.count - first))
        yield from generate(model, part, lambda model, _: (model, unmatched), refiner)


def batch_size(runtime: Runtime, request: ResolvedRequest) -> int:
    """How many pictures to draw at once: as many as are faster together, and fit in half of the
    memory that is free."""
    width, height = request.largest_size
    count = faster_together(runtime.device.type, width * height)
    free = free_memory(runtime.device)
    if free is not None:  # decoding needs the most
        count = min(count, free // (2 * runtime.model.vae.working_bytes(width, height)))
    return max(1, count)


def faster_together(device: str, pixels: int) -> int:
    """How many pictures of this many pixels are faster in one batch than one by one, at least 1.
    device: its type."""
    count, most = CPU_BATCH if device == "cpu" else GPU_BATCH
    return max(1, min(count, most // pixels))


def plain(model: Model, request: Request) -> tuple[Model, tuple[str, ...]]:
    """The model as it is, for a request without LoRAs and embeddings; ValueError for others."""
    named = [path for path, *_ in request.loras] + list(request.embeddings)
    named += [tag.name for tag in request.lora_tags]
    upscaler = request.hires_upscaler
    if request.hires is not None and hires.must_open(upscaler, model.second_stage is not None):
        named.append(upscaler)
    if named:
        raise ValueError(
            f"the request names {named[0]!r}, and no `adapt` is given that opens LoRAs, "
            "embeddings and upscalers, such as adapters.adapt"
        )
    return model, ()


# ---------------------------------------------------------------- the loop


def steps_of(
    runtime: Runtime, refiner: Model | None, plan: Plan
) -> Iterator[tuple[Step, Parts | None]]:
    """The start, then every step of every pass, each with the parts of its last estimate."""
    request, passes = plan.request, plan.passes
    counts = [len(levels) - 1 for levels in passes]
    runtimes = [runtime] if refiner is None else [runtime, Runtime(refiner, runtime.warnings)]
    prompts = [conditioning_schedule(each, request, *counts) for each in runtimes]
    begin = latents.first_pass(runtime, request, plan.canvas, passes[0][0])
    step = Step(begin.x, begin.x0, passes[0][0])
    yield step, None
    for step, parts in steps_of_pass(runtimes, plan, 0, begin, prompts):
        yield step, parts
    if request.second_pass is not None:
        begin = latents.second_pass(runtime, request, request.second_pass, step.x, passes[1][0])
        rest = [each[counts[0] :] for each in prompts]
        yield from steps_of_pass(runtimes, plan, 1, begin, rest)


def steps_of_pass(
    runtimes: Sequence[Runtime],
    plan: Plan,
    number: int,
    begin: Begin,
    prompts: Sequence[Sequence[StepConditioning]],
) -> Iterator[tuple[Step, Parts | None]]:
    """The model's steps of a pass, then the refiner's. number: of the pass, from 0. prompts: the
    conditioning of each model, by step."""
    request, levels = plan.request, plan.passes[number]
    sampler = samplers.get(request.sampler)
    noise = source(begin.streams, request.noise)
    x = begin.x
    for runtime, texts, (first, end) in zip(runtimes, prompts, plan.splits[number], strict=True):
        if first == end:
            continue
        guides = guides_of(runtime, request, texts[first:end], begin.size, begin.canvas)
        recorded = Recorded(guided_by(runtime.model, request, guides, levels[first:end]))
        guided: GuidedDenoiser = recorded
        if request.clip_guidance:
            guided = with_clip(runtime.model, request, guided, guides[0])
        keep = inpaint.keep_of(runtime.model, begin.canvas, begin.x0)
        if keep is not None:
            guided = keep.around(guided)
        for step in sampler.steps(guided, x, levels[first : end + 1], noise, **plan.options):
            if keep is not None and step.level is levels[-1]:  # a little noise may be left
                step = step._replace(x=keep(step.x))
            x = step.x
            yield step, recorded.last


# ---------------------------------------------------------------- guidance


def guided_by(
    model: Model,
    request: ResolvedRequest,
    guides: Sequence[ClassifierFree],
    begins: Sequence[Level],
) -> GuidedDenoiser:
    """The guidance of all steps in one; some of them are forecast. begins: the level at which each step
    begins."""

    def by_step(guides: Sequence[ClassifierFree]) -> GuidedDenoiser:
        guided = ByStep(begins, guides)
        return Regional(guided, request.regions) if request.regions else guided

    if not request.forecast or no_forecast(request, len(begins)) is not None:
        return by_step(guides)
    alone = None
    if request.forecast_more and no_more_forecasts(model, request) is None:
        alone = by_step([guide.conditional for guide in guides])
    return Forecast(by_step(guides), begins, changes_of(guides, begins), alone)


def guides_of(
    runtime: Runtime,
    request: ResolvedRequest,
    prompts: Sequence[StepConditioning],
    size: tuple[int, int],
    canvas: Canvas | None = None,
) -> list[ClassifierFree]:
    """The guidance of each step. size: width and height of the pass, in pixels."""
    predict = predictor(network(runtime, size, canvas), runtime.model.prediction)
    sized = [prompt.at_size(runtime.model, *size) for prompt in prompts]
    scale, rescale, interval = request.guidance, request.rescale, request.interval
    return [
        ClassifierFree(predict, conds, uncond, scale, rescale, interval) for conds, uncond in sized
    ]


def changes_of(guides: Sequence[ClassifierFree], levels: Sequence[Level]) -> list[int]:
    """The steps that have other prompts than the one before, or guidance where that had none, or none
    where that had it."""
    same = [
        before.is_guided(level) == after.is_guided(next_level) and before.has_prompts_of(after)
        for before, after, level, next_level in zip(
            guides, guides[1:], levels, levels[1:], strict=False
        )
    ]
    return [step for step, alike in enumerate(same, 1) if not alike]


def network(runtime: Runtime, size: tuple[int, int], canvas: Canvas | None) -> Network:
    """The backbone; one for inpainting also gets the mask and the masked picture.

    Without a mask it draws everything.
    """
    if not inpaint.sees_masks(runtime.model):
        return runtime.network
    if canvas is None or canvas.mask is None:
        grey = Image.new("RGB", size)
        canvas = Canvas(grey, None, (0, 0, *size), size)
    mask = inpaint.mask_channel(canvas, runtime.model.vae.config.downsample)
    masked = runtime.encode(inpaint.masked_pixels(canvas))
    return inpaint.with_channels(runtime.network, torch.cat([mask.to(masked), masked], dim=1))


def with_clip(
    model: Model, request: ResolvedRequest, guided: GuidedDenoiser, guide: ClassifierFree
) -> GuidedDenoiser:
    """CLIP guidance towards the prompt of `guide`; see `plan.check_clip_guidance`."""
    vision, pooled = model.vision, guide.conds[0][0].pooled
    assert vision is not None and pooled is not None
    text = pooled[:, : vision.config.projection]  # the sum of the words may follow
    side = vision.config.image_size

    def embed(pixels: Tensor) -> Tensor:
        return vision(torch.nn.functional.interpolate(pixels, (side, side), mode="bilinear"))

    return clip_guidance(guided, model.vae.to_pixels, embed, text, request.clip_guidance)


# ---------------------------------------------------------------- pixels


def finished(runtime: Runtime, plan: Plan, x: Tensor) -> list[Image.Image]:
    """The pictures of the last step; where no step was drawn, the one to start from."""
    request, canvas = plan.request, plan.canvas
    if canvas is not None and plan.steps == 0:
        return [canvas.picture] * len(x)
    pixels = runtime.decode(decoder_of(runtime.model, request.decoder), x).float()
    scale = 1 if request.second_pass is None else request.second_pass.scale
    size = round(request.width * scale), round(request.height * scale)
    if runtime.model.second_stage is not None:
        pixels = enlarged(runtime, pixels, size, request.seeds)
    images = [to_pil(picture) for picture in pixels]
    if request.layout is not None:
        images = [composed(picture, request.regions, request.layout) for picture in images]
    if request.regions or runtime.model.second_stage is not None:  # these draw more than that
        images = [each.resize(size, Image.Resampling.LANCZOS) for each in images]
    return images if canvas is None else [canvas.paste(picture) for picture in images]


def enlarged(
    runtime: Runtime, pixels: Tensor, size: tuple[int, int], seeds: Sequence[int]
) -> Tensor:
    """Pixels (B, 3, h, w) as large as this width and height or larger, by the model's second stage.

    It runs as often as needed. Its noise depends on each picture's seed alone.
    """
    second = runtime.model.second_stage
    assert second is not None
    factor, streams = second.config.factor, latents.streams_of(seeds)
    while pixels.shape[3] < size[0] or pixels.shape[2] < size[1]:
        height, width = (side * factor for side in pixels.shape[2:])
        pixels = runtime.enlarge(pixels, draw("gaussian", (3, height, width), streams))
    return pixels
