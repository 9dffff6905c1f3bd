"""From a request to pictures.

Text to image, image to image, inpainting, mixing, variations, a second pass at a larger size: the
same loop, ``for step in sample(...)``. To stop is to stop iterating.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor

from pellucid import hires, inpaint, samplers
from pellucid.conditioning import StepConditioning, conditioning_schedule, in_chunks
from pellucid.diffusion import Conditioning, Denoiser, Network, add_noise, predictor
from pellucid.guidance import ByStep, ClassifierFree, Parts, clip_guidance, progress
from pellucid.images.load import picture_size
from pellucid.images.pixels import to_tensor
from pellucid.inpaint import Canvas
from pellucid.model import Model
from pellucid.noise import draw, generators, slerp, source
from pellucid.preview import decoder_of, pictures
from pellucid.prompt import unbalanced, unread
from pellucid.request import Request, draws_any_size, resolve, unit_of
from pellucid.runtime import Runtime
from pellucid.samplers import Step
from pellucid.schedule import MAX_STEPS, Level


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
    """The guided, conditional and unconditional estimates; their difference is the guidance."""
    request: Request
    """With every default filled in."""
    seeds: tuple[int, ...]
    warnings: tuple[str, ...]
    images: list[Image.Image] | None = None
    """The pictures, at the last step."""

    @property
    def difference(self) -> Tensor | None:
        """What the text changes in the estimate, cond - uncond: zero without guidance, None where
        the network was not asked (image to image with strength 0)."""
        return None if self.parts is None else self.parts.cond - self.parts.uncond


Adapt = Callable[[Model, Request], tuple[Model, tuple[str, ...]]]
"""Puts on a model what a request names, and says what of that did not match: `adapters.adapt`."""


@torch.no_grad()
def generate(
    model: Model, request: Request, adapt: Adapt | None = None, refiner: Model | None = None
) -> Iterator[Progress]:
    """Draw, and tell after every step; the last Progress has the pictures.

    adapt: opens the LoRAs and embeddings that the request names; without it there may be none.
    refiner: the model that the request names as such.
    Raises ValueError: a size or a setting that this model cannot do, a picture that cannot be read,
    a refiner that cannot go on with this model's latents.
    """
    check_refiner(model, request, refiner)
    model, unmatched = plain(model, request) if adapt is None else adapt(model, request)
    asked, request = request, resolve(model, request)
    assert request.seed is not None
    decoder_of(model, request.decoder)  # said now, not after the work is done
    canvas = None if request.image is None else inpaint.prepare(request, unit_of(model))
    runtime = Runtime(model)
    passes = levels_of(model, request)
    total = sum(len(levels) - 1 for levels in passes)
    runtime.warnings += [*unmatched, *warnings_of(model, asked, request, refiner, passes)]
    looks: list[Parts] = []
    steps = steps_of(runtime, request, refiner, canvas, passes, looks)
    for number, step in enumerate(steps):
        if not torch.isfinite(step.x).all():
            raise ValueError(
                f"step {number} of {total} gave numbers that are not finite; a lower guidance than "
                f"{request.guidance:g} or another sampler than {request.sampler!r} is wanted"
            )
        images = None
        if number == total:
            images = finished(runtime, canvas, step.x, total > 0, request.decoder)
        if number > 0 or total == 0:  # number 0 is the start
            look = looks[0] if looks else None
            yield Progress(
                number,
                total,
                step.level,
                step.x,
                step.x0,
                look,
                request,
                tuple(request.seeds),
                tuple(runtime.warnings),
                images,
            )


def plain(model: Model, request: Request) -> tuple[Model, tuple[str, ...]]:
    """The model as it is, for a request that asks for nothing on it; ValueError for others."""
    named = [path for path, *_ in request.loras] + list(request.embeddings)
    named += [tag.name for tag in request.lora_tags]
    if named:
        raise ValueError(
            f"the request asks for {named[0]!r}, and nothing is given that opens LoRAs and "
            "embeddings: adapters.adapt does"
        )
    return model, ()


def check_refiner(model: Model, request: Request, refiner: Model | None) -> None:
    """Raises ValueError where the request's refiner is missing, or cannot go on with the latents."""
    if refiner is None:
        if request.refiner is not None:
            raise ValueError(f"the request asks for the refiner {request.refiner!r}; none is given")
        return
    ours, theirs = model.vae.config, refiner.vae.config
    same = ("latent_channels", "downsample", "scaling_factor", "shift_factor")
    if any(getattr(ours, name) != getattr(theirs, name) for name in same):
        raise ValueError(
            f"the refiner {refiner.name} has other latents than {model.name}; one of the same kind "
            "of autoencoder is wanted"
        )
    if model.schedule != refiner.schedule:
        raise ValueError(
            f"the refiner {refiner.name} has another noise schedule than {model.name}; one of the "
            "same is wanted"
        )


def steps_of(
    runtime: Runtime,
    request: Request,
    refiner: Model | None,
    canvas: Canvas | None,
    passes: Sequence[Sequence[Level]],
    looks: list[Parts],
) -> Iterator[Step]:
    """The start, then every step of every pass; `looks` holds what the last look was made of."""
    assert request.seed is not None and request.sampler is not None
    assert request.width is not None and request.height is not None
    sampler = samplers.get(request.sampler).sample
    options = sampler_options(sampler, request)
    size = (request.width, request.height) if canvas is None else canvas.size
    counts = [len(levels) - 1 for levels in passes]
    models = [runtime] if refiner is None else [runtime, Runtime(refiner, runtime.warnings)]
    each = [conditioning_schedule(one, request, *counts) for one in models]

    def one_pass(
        x: Tensor,
        levels: Sequence[Level],
        before: int,
        size: tuple[int, int],
        canvas: Canvas | None = None,
        original: Tensor | None = None,
    ) -> Iterator[Step]:
        """A pass from x on, behind so many steps of another: the model's part, the refiner's."""
        fresh = source(streams, request.noise)
        parts = shares(refiner, request, levels)
        for one, says, (first, end) in zip(models, each, parts, strict=True):
            if first == end:
                continue
            here = levels[first : end + 1]
            plan = planned(here, says[before + first :])
            denoise = denoiser(one, request, canvas, size, original, plan, looks)
            for step in sampler(denoise, x, here, fresh, **options):
                if isinstance(denoise, inpaint.Keep) and step.level is levels[-1]:
                    step = step._replace(x=denoise.keep(step.x))
                x = step.x
                yield step

    streams = streams_of(request.seeds)
    step = begin = start(runtime, request, canvas, size, passes[0][0], streams)
    yield begin
    original = None if canvas is None else begin.x0
    for step in one_pass(begin.x, passes[0], 0, size, canvas, original):
        yield step
    for levels in passes[1:]:
        size, x0 = enlarge(runtime, request, size, step.x)
        streams = streams_of(request.seeds)
        noise = first_noise(runtime, request, size, streams)
        x = add_noise(x0, noise, levels[0].alpha, levels[0].sigma)
        for step in one_pass(x, levels, counts[0], size):
            yield step


def shares(
    refiner: Model | None, request: Request, levels: Sequence[Level]
) -> list[tuple[int, int]]:
    """Which steps of a pass are the model's and which the refiner's, each (first, end).

    As in diffusers, the part of the way is one of the time and not of the number of steps.
    """
    count = len(levels) - 1
    if refiner is None:
        return [(0, count)]
    until = round(refiner.schedule.T * (1 - request.refiner_at))
    switch = sum(level.t >= until for level in levels[:-1])
    return [(0, switch), (switch, count)]


def levels_of(model: Model, request: Request) -> list[list[Level]]:
    """The levels of each pass; with strength 0 the first one has a single level, the clean one."""
    assert request.steps is not None and request.spacing is not None
    assert request.sampler is not None
    name, schedule = request.sampler, model.schedule
    levels = samplers.levels_for(name, schedule, request.steps, request.spacing)
    passes = [levels if request.image is None else levels[request.steps - redrawn(request) :]]
    if request.hires is not None:
        assert request.hires_steps is not None
        whole = hires.levels_for(request.hires_steps, request.hires_strength)
        if whole > MAX_STEPS:
            raise ValueError(
                f"hires_steps {request.hires_steps} at hires_strength {request.hires_strength:g} "
                f"are a part of {whole} steps; fewer steps or more strength are wanted, for a "
                f"whole of at most {MAX_STEPS}"
            )
        again = samplers.levels_for(name, schedule, whole, request.spacing)
        passes.append(again[whole - request.hires_steps :])
    return passes


def redrawn(request: Request) -> int:
    """The steps that are done of a run from a picture."""
    assert request.steps is not None and request.strength is not None
    # As diffusers: int(). The tiny number is because 0.29 * 100 is 28.999...
    return int(request.strength * request.steps + 1e-6)


def warnings_of(
    model: Model,
    asked: Request,
    request: Request,
    refiner: Model | None,
    passes: Sequence[Sequence[Level]],
) -> tuple[str, ...]:
    """What was done otherwise than asked; `request` is `asked`, resolved."""
    prompts = (*request.prompts, request.negative_prompt)
    counts = [len(levels) - 1 for levels in passes]
    warnings = [told for prompt in dict.fromkeys(prompts) if (told := unbalanced(prompt))]
    warnings += [
        f"no step of {sum(counts)} reads {text!r} of the prompt; see pellucid tokens"
        for prompt in prompts
        for text in unread(prompt, *counts)
    ]
    long = [in_chunks(model.tokenizer, prompt, *counts) for prompt in dict.fromkeys(prompts)]
    warnings += [told for told in long if told]
    default = Request()
    warnings += [
        f"{field} does nothing without {needed}"
        for field, needed in asked.idle().items()
        if getattr(asked, field) != getattr(default, field)
    ]
    if refiner is not None and all(len(s) - 1 == shares(refiner, request, s)[0][1] for s in passes):
        warnings.append(
            f"refiner_at {request.refiner_at:g} leaves no step to the refiner; more steps or a "
            "smaller number is wanted"
        )
    if request.image is not None:
        if request.strength is not None and redrawn(request) == 0 < request.strength:
            warnings.append(
                f"strength {request.strength:g} of {request.steps} steps is less than one step: "
                "nothing is drawn anew; more steps or more strength is wanted"
            )
        open_size = None in (asked.width, asked.height)
        if open_size and not request.masked and draws_any_size(model):
            own, size = picture_size(request.image), (request.width, request.height)
            if own != size:
                warnings.append(
                    f"{request.image} is {own[0]}x{own[1]} and is drawn at {size[0]}x{size[1]}: "
                    f"multiples of {unit_of(model)} are wanted"
                )
    if inpaint.sees_masks(model) and not request.masked:
        warnings.append(
            f"{model.name} is for inpainting; without a mask it draws the whole picture"
        )
    return tuple(warnings)


# ---------------------------------------------------------------- where a pass begins


def start(
    runtime: Runtime,
    request: Request,
    canvas: Canvas | None,
    size: tuple[int, int],
    level: Level,
    streams: Sequence[Generator],
) -> Step:
    """The noisy latents that the first pass begins with, and the clean ones of the picture."""
    noise = first_noise(runtime, request, size, streams)
    # Stable Diffusion's own samplers begin with noise of deviation 1, k-diffusion's with sigma.
    pure = noise if request.spacing == "leading" else level.sigma * noise
    if canvas is None:
        return Step(pure, pure, level)
    x0 = runtime.encode(canvas.pixels).expand_as(noise)
    begin = x0
    if canvas.mask is not None:
        if request.strength == 1:  # as diffusers: nothing shines through
            return Step(pure, x0, level)
        weights = canvas.latent_weights(runtime.model.vae.config.downsample).to(x0)
        if request.inpaint_fill == "fill":
            filled = inpaint.surroundings(canvas.pixels, 1 - canvas.weights)
            begin = runtime.encode(filled).expand_as(noise)
        elif request.inpaint_fill == "noise":
            other = draw(request.noise, tuple(noise.shape[1:]), streams).to(noise)
            begin = torch.lerp(x0, other, weights)
        elif request.inpaint_fill == "blank":
            begin = x0 * (1 - weights)
    return Step(add_noise(begin, noise, level.alpha, level.sigma), x0, level)


def streams_of(seeds: Iterable[int]) -> list[Generator]:
    """The randomness of each image."""
    return [generators(seed, 1)[0] for seed in seeds]


def first_noise(
    runtime: Runtime, request: Request, size: tuple[int, int], streams: Sequence[Generator]
) -> Tensor:
    """The noise of each seed, (count, C, h, w), where the network is; size: width, height."""
    assert request.seed is not None
    config = runtime.model.vae.config
    unit = config.downsample
    shape = (config.latent_channels, size[1] // unit, size[0] // unit)
    noise = draw(request.noise, shape, streams)
    if request.variation_strength > 0:
        other = request.seed + 1 if request.variation_seed is None else request.variation_seed
        turn = other - request.seed
        towards = draw(request.noise, shape, streams_of(seed + turn for seed in request.seeds))
        noise = slerp(noise, towards, request.variation_strength)
    return noise.to(runtime.device, runtime.dtype)


def enlarge(
    runtime: Runtime, request: Request, size: tuple[int, int], latents: Tensor
) -> tuple[tuple[int, int], Tensor]:
    """The size of the second pass and the clean latents enlarged to it."""
    assert request.hires is not None
    unit = unit_of(runtime.model)
    width, height = (round(side * request.hires / unit) * unit for side in size)
    name = request.hires_upscaler
    if name in hires.LATENT:
        down = runtime.model.vae.config.downsample
        larger = hires.enlarge_latents(latents, width // down, height // down, name)
    else:
        how = hires.PICTURE[name]
        drawn = pictures(runtime, latents, request.decoder)
        whole = [picture.resize((width, height), how) for picture in drawn]
        pixels = torch.stack([to_tensor(picture) for picture in whole])
        larger = runtime.encode(pixels)
    return (width, height), larger


# ---------------------------------------------------------------- what sees through the noise


def planned(
    levels: Sequence[Level], each: Sequence[StepConditioning]
) -> list[tuple[float, StepConditioning]]:
    """Where each step of a pass begins, and what it is told."""
    return list(zip(map(progress, levels[:-1]), each, strict=False))


def denoiser(
    runtime: Runtime,
    request: Request,
    canvas: Canvas | None,
    size: tuple[int, int],
    original: Tensor | None,
    plan: Sequence[tuple[float, StepConditioning]],
    looks: list[Parts],
) -> Denoiser:
    """The model as a function (x, level) -> x0: told the prompts, guided, kept to the mask.

    size: width and height of the pass. original: the clean latents of the canvas. plan: the
    `guidance.progress` at which each step begins, and what it is told. What each look was made of
    goes into `looks`.
    """
    assert request.guidance is not None
    model = runtime.model
    predict = predictor(network(runtime, canvas, size), model.prediction)
    scale, rescale, interval = request.guidance, request.rescale, request.interval
    steps = []
    for begin, step in plan:
        conds, uncond = step.at_size(model, *size)
        guide = ClassifierFree(predict, conds, uncond, scale, rescale, interval)
        steps.append((begin, guide))
    watched = Watched(ByStep(steps), looks)
    denoise: Denoiser = watched
    if request.clip_guidance:
        if request.sampler == "ddim_cfgpp":
            raise ValueError("clip_guidance does not go with the sampler 'ddim_cfgpp'; ddim does")
        denoise = with_clip(model, request, watched, plan[0][1].conds[0][0])
    if canvas is not None and canvas.mask is not None and not inpaint.sees_masks(model):
        assert original is not None
        weights = canvas.latent_weights(model.vae.config.downsample).to(original)
        denoise = inpaint.Keep(denoise, original, weights)
    return denoise


def network(runtime: Runtime, canvas: Canvas | None, size: tuple[int, int]) -> Network:
    """The backbone; one for inpainting with the mask and what is to stay beside x.

    Without a mask it is to draw everything.
    """
    if not inpaint.sees_masks(runtime.model):
        return runtime.network
    if canvas is None or canvas.mask is None:
        grey = Image.new("RGB", size)
        canvas = Canvas(grey, None, (0, 0, *size), size)
    channel = inpaint.mask_channel(canvas, runtime.model.vae.config.downsample)
    seen = runtime.encode(inpaint.masked_pixels(canvas))
    return inpaint.beside(runtime.network, torch.cat([channel.to(seen), seen], dim=1))


@dataclass(frozen=True)
class Watched:
    """A guided denoiser that keeps what its last look was made of."""

    guided: ByStep
    last: list[Parts]

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        return self.parts(x, level).guided

    def parts(self, x: Tensor, level: Level) -> Parts:
        """For samplers that put back the unconditional noise (CFG++)."""
        parts = self.guided.parts(x, level)
        self.last[:] = [Parts(*(part.detach() for part in parts))]  # CLIP guidance makes a graph
        return parts


def with_clip(model: Model, request: Request, denoise: Denoiser, cond: Conditioning) -> Denoiser:
    """CLIP guidance towards the prompt. Raises ValueError if the model has no picture tower."""
    if model.vision is None:
        raise ValueError("clip_guidance needs CLIP's picture tower, which this model has not")
    if model.text.text_projection is None or model.text_2 is not None:
        raise ValueError("clip_guidance needs a text tower with a projection, which this is not")
    assert cond.pooled is not None
    vision = model.vision
    text = cond.pooled[:, : vision.config.projection]  # more may stand behind it
    side = vision.config.image_size

    def embed(pixels: Tensor) -> Tensor:
        return vision(torch.nn.functional.interpolate(pixels, (side, side), mode="bilinear"))

    return clip_guidance(denoise, model.vae.to_pixels, embed, text, request.clip_guidance)


def sampler_options(sampler: Callable[..., Any], request: Request) -> dict[str, float]:
    """The sampler's own options that the request sets. ValueError for one that it does not have."""
    if request.eta is None:
        return {}
    if "eta" not in inspect.signature(sampler).parameters:
        raise ValueError(f"the sampler {request.sampler!r} has no eta; ddim has")
    return {"eta": request.eta}


# ---------------------------------------------------------------- pixels


def finished(
    runtime: Runtime, canvas: Canvas | None, x: Tensor, drawn: bool, decoder: str
) -> list[Image.Image]:
    """The pictures of the last step; where nothing was drawn, the one that it began with."""
    if canvas is None:
        return pictures(runtime, x, decoder)
    if not drawn:
        return [canvas.picture] * len(x)
    return [canvas.paste(picture) for picture in pictures(runtime, x, decoder)]
