"""From a request to pictures: everything that can be asked for is a field of `Request`.

Text to image, image to image, mixing, variations: the same loop, ``for step in sample(...)``. To stop
is to stop iterating.
"""

from __future__ import annotations

import inspect
import math
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from pellucid import samplers
from pellucid.diffusion import Conditioning, Denoiser, add_noise, predictor
from pellucid.guidance import ClassifierFree, Parts, clip_guidance
from pellucid.images import fit, open_image, to_pil, to_tensor
from pellucid.model import Defaults, Model
from pellucid.noise import MAX_SEED, NOISES, draw, generators, slerp, source
from pellucid.plugins import choose
from pellucid.prompt import encode
from pellucid.schedule import SPACINGS, Level

MAX_SIDE = 4096
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Request(BaseModel):
    """What to draw. None means: as the model's defaults say (`resolve` fills these in).

    A request is plain data: it comes from the command line or from HTTP, and it is stored in the
    picture that it made, from which it can be made again. Raises pydantic's ValidationError, which
    is a ValueError, naming the field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = ""
    negative_prompt: str = ""
    seed: int | None = Field(default=None, ge=-1, le=MAX_SEED)
    """Image i has the seed `seed + i`. None or -1: chosen at random, and recorded."""
    count: int = Field(default=1, ge=1, le=1000)
    steps: int | None = Field(default=None, ge=1, le=1000)
    guidance: Finite | None = None
    """Scale of classifier-free guidance; 1 is none."""
    sampler: str | None = None
    spacing: str | None = None
    width: int | None = Field(default=None, ge=8, le=MAX_SIDE)
    height: int | None = Field(default=None, ge=8, le=MAX_SIDE)
    image: str | None = None
    """Path of a picture to start from."""
    strength: Share = 0.6
    """How much of `image` is drawn anew: 0 leaves it, 1 keeps nothing."""
    mix: tuple[tuple[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]], ...] = ()
    """Further prompts and their weights beside the prompt's own, which is 1."""
    mix_by: Literal["embedding", "noise"] = "noise"
    variation_seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    variation_strength: Share = 0.0
    """How far the first noise is turned towards that of `variation_seed`, image i's towards that of
    `variation_seed + i`. None: the seed after the image's own."""
    rescale: Share = 0.0
    interval: tuple[Share, Share] = (0.0, 1.0)
    """The part of the way, from noise 0 to picture 1, on which guidance is used."""
    noise: str = "gaussian"
    eta: Share | None = None
    """Of samplers that have it: how much fresh noise a step adds."""
    clip_guidance: Finite = 0.0
    """Scale of the gradient of CLIP's similarity between the picture and the prompt; 0 is none."""

    @field_validator("sampler")
    @classmethod
    def _sampler(cls, name: str | None) -> str | None:
        if name is not None:
            samplers.resolve(name)
        return name

    @field_validator("spacing")
    @classmethod
    def _spacing(cls, name: str | None) -> str | None:
        return None if name is None else choose(name, SPACINGS, "spacing")

    @field_validator("noise")
    @classmethod
    def _noise(cls, name: str) -> str:
        return choose(name, NOISES, "noise")

    @model_validator(mode="after")
    def _together(self) -> Request:
        if self.interval[0] > self.interval[1]:
            raise ValueError(f"the interval {self.interval} ends before it begins")
        if self.seed is not None and self.seed + self.count - 1 > MAX_SEED:
            raise ValueError(
                f"seed {self.seed} and count {self.count} pass the last seed {MAX_SEED}"
            )
        return self

    def alone(self, i: int) -> Request:
        """The request of image i by itself; `seed` is filled in, as in `Progress.request`."""
        if self.seed is None or not 0 <= i < self.count:
            raise ValueError(f"image {i} of {self.count} with the seed {self.seed} has no request")
        turned = None if self.variation_seed is None else self.variation_seed + i
        return self.model_copy(update={"seed": self.seed + i, "variation_seed": turned, "count": 1})


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


def resolve(model: Model, request: Request) -> Request:
    """The request with the model's defaults, a seed and plain names filled in.

    Raises ValueError for a size that the model cannot draw.
    """
    d: Defaults = model.defaults
    name, spacing = samplers.resolve(d.sampler if request.sampler is None else request.sampler)
    if request.spacing is not None:
        spacing = request.spacing
    fixed: dict[str, Any] = {
        "steps": d.steps if request.steps is None else request.steps,
        "guidance": (
            getattr(samplers.get(name), "GUIDANCE", d.guidance)
            if request.guidance is None
            else request.guidance
        ),
        "sampler": name,
        "spacing": d.spacing if spacing is None else spacing,
        "width": d.width if request.width is None else request.width,
        "height": d.height if request.height is None else request.height,
        "seed": secrets.randbelow(2**32) if request.seed in (None, -1) else request.seed,
    }
    unit = model.vae.config.downsample
    for side in ("width", "height"):
        if fixed[side] % unit:
            near = max(round(fixed[side] / unit), 1) * unit
            raise ValueError(
                f"{side} is {fixed[side]}; a multiple of {unit} is wanted, for instance {near}"
            )
    return request.model_copy(update=fixed)


@torch.no_grad()
def generate(model: Model, request: Request) -> Iterator[Progress]:
    """Draw, and tell after every step; the last Progress has the pictures.

    Raises ValueError: a size or a setting that this model cannot do, a picture that cannot be read.
    """
    request = resolve(model, request)
    assert request.seed is not None and request.steps is not None
    assert request.width is not None and request.height is not None
    assert request.sampler is not None and request.spacing is not None
    assert request.guidance is not None
    seeds = tuple(request.seed + i for i in range(request.count))
    parameter = next(model.backbone.parameters())
    device, dtype = parameter.device, parameter.dtype

    prompts = [request.prompt, *(text for text, _ in request.mix)]
    warnings = [
        f"the prompt is too long for this model; left out: {cut[:200]!r}"
        for text in (*prompts, request.negative_prompt)
        if (cut := model.tokenizer.cut(text))
    ]
    encoded = encode(model.text, model.tokenizer, [*prompts, request.negative_prompt])
    encoded = encoded.to(device, dtype)
    conds = [encoded[i : i + 1] for i in range(len(prompts))]
    weighted = list(zip(conds, (1.0, *(w for _, w in request.mix)), strict=True))
    uncond = encoded[len(prompts) :] if request.guidance != 1 else None
    cond: Conditioning | list[tuple[Conditioning, float]] = (
        Conditioning.mix(weighted) if request.mix_by == "embedding" else weighted
    )
    guided = ClassifierFree(
        predictor(model.backbone, model.prediction),
        cond,
        uncond,
        request.guidance,
        request.rescale,
        request.interval,
    )
    watched = Watched(guided, [])
    denoise: Denoiser = watched
    if request.clip_guidance:
        if request.sampler == "ddim_cfgpp":
            raise ValueError("clip_guidance does not go with the sampler 'ddim_cfgpp'; ddim does")
        denoise = with_clip(model, request, watched)

    unit = model.vae.config.downsample
    shape = (model.vae.config.latent_channels, request.height // unit, request.width // unit)
    streams = generators(request.seed, request.count)
    noise = draw(request.noise, shape, streams)
    if request.variation_strength > 0:
        other = request.seed + 1 if request.variation_seed is None else request.variation_seed
        towards = draw(request.noise, shape, generators(other, request.count))
        noise = slerp(noise, towards, request.variation_strength)
    noise = noise.to(device, dtype)

    levels = model.schedule.levels(request.steps, request.spacing)
    if request.image is None:
        x = levels[0].sigma * noise
    else:
        picture = fit(open_image(Path(request.image)), request.width, request.height)
        pixels = to_tensor(picture)[None].to(device, dtype)
        x0 = model.vae.to_latents(pixels).expand_as(noise)
        # As diffusers: int(). The tiny number is because 0.29 * 100 is 28.999...
        redrawn = int(request.strength * request.steps + 1e-6)
        if redrawn == 0 < request.strength:
            warnings.append(
                f"strength {request.strength:g} of {request.steps} steps is less than one step: "
                "nothing is drawn anew; more steps or more strength is wanted"
            )
        levels = levels[request.steps - redrawn :]
        x = add_noise(x0, noise, levels[0].alpha, levels[0].sigma)
        if len(levels) == 1:  # strength 0: nothing is drawn anew
            whole = [picture] * request.count
            yield Progress(0, 0, levels[0], x, x0, None, request, seeds, tuple(warnings), whole)
            return

    sampler = samplers.get(request.sampler).sample
    options = sampler_options(sampler, request)
    total = len(levels) - 1
    fresh = source(streams, request.noise)
    steps = sampler(denoise, x, levels, fresh, **options)
    for number, step in enumerate(steps, 1):
        if not torch.isfinite(step.x).all():
            raise ValueError(
                f"step {number} of {total} gave numbers that are not finite; a lower guidance than "
                f"{request.guidance:g} or another sampler than {request.sampler!r} is wanted"
            )
        last = number == total
        images = pictures(model, step.x) if last else None
        yield Progress(
            number,
            total,
            step.level,
            step.x,
            step.x0,
            watched.last[0] if watched.last else None,
            request,
            seeds,
            tuple(warnings),
            images,
        )


@dataclass(frozen=True)
class Watched:
    """A guided denoiser that keeps what its last look was made of."""

    guided: ClassifierFree
    last: list[Parts]

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        return self.parts(x, level).guided

    def parts(self, x: Tensor, level: Level) -> Parts:
        """For samplers that put back the unconditional noise (CFG++)."""
        parts = self.guided.parts(x, level)
        self.last[:] = [Parts(*(part.detach() for part in parts))]  # CLIP guidance makes a graph
        return parts


def with_clip(model: Model, request: Request, denoise: Denoiser) -> Denoiser:
    """CLIP guidance towards the prompt. Raises ValueError if the model has no picture tower."""
    if model.vision is None:
        raise ValueError("clip_guidance needs CLIP's picture tower, which this model has not")
    vision, text = model.vision, model.text(model.tokenizer([request.prompt])).projected
    if text is None:
        raise ValueError("clip_guidance needs a text tower with a projection, which this is not")
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


@torch.no_grad()
def pictures(model: Model, latents: Tensor) -> list[Image.Image]:
    """Scaled latents (B, C, h, w) as pictures."""
    return [to_pil(pixels) for pixels in model.vae.to_pixels(latents).float()]


def preview(model: Model, latents: Tensor) -> list[Image.Image]:
    """x_t or x0 of any step as pictures; x_t is what the decoder makes of noise."""
    if not math.isfinite(float(latents.abs().max())):
        raise ValueError("the latents are not finite")
    return pictures(model, latents)
