"""What can be asked for: every task is a field of `Request`, never another function."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal, NamedTuple

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pellucid import hires, samplers
from pellucid.images.load import open_image
from pellucid.model import Emphasis, Model
from pellucid.noise import MAX_SEED, NOISES
from pellucid.plugins import choose
from pellucid.prompt import LoraTag, take_loras

MAX_SIDE = 4096
# Models of at least this width draw any size; a smaller one draws what it was trained on.
ANY_SIZE = 256
STRENGTH, MASK_STRENGTH, EXTEND_STRENGTH = 0.6, 0.75, 1.0
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Pixels = Annotated[int, Field(ge=0, le=MAX_SIDE)]

# Fields that do nothing without a mask, and without a second pass.
OF_MASK = {"mask_blur", "mask_grow", "mask_invert", "inpaint_fill", "only_masked", "padding"}
OF_HIRES = {"hires_steps", "hires_strength", "hires_upscaler"}


class Request(BaseModel):
    """What to draw. None means: as the model's defaults say (`resolve` fills these in).

    A request is plain data: it comes from the command line or from HTTP, and it is stored in the
    picture that it made, from which it can be made again. Raises pydantic's ValidationError, which
    is a ValueError, naming the field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = ""
    """In the grammar of `prompt`."""
    negative_prompt: str = ""
    clip_skip: Annotated[int, Field(ge=1, le=100)] | None = None
    """The layer of the text tower that is read: 1 is the last that it was trained with, 2 the one
    before, also where a file lacks the last. None: the one that the model was trained with."""
    emphasis: Emphasis | None = None
    """What weights in a prompt do, as in `model.TextEncoding`. None: what suits the model."""
    loras: tuple[tuple[str, Finite, Finite], ...] = ()
    """Files with LoRAs, and how much each counts in the network and in the text towers. Those that
    a prompt names in <lora:name:weight> come on top."""
    embeddings: tuple[str, ...] = ()
    """Files with textual-inversion embeddings, whose words can be used in the prompts."""
    seed: int | None = Field(default=None, ge=-1, le=MAX_SEED)
    """Image i has the seed `seed + i`. None or -1: chosen at random, and recorded."""
    count: int = Field(default=1, ge=1, le=1000)
    steps: int | None = Field(default=None, ge=1, le=1000)
    guidance: Finite | None = None
    """Scale of classifier-free guidance; 1 is none."""
    sampler: str | None = None
    spacing: str | None = None
    width: int | None = Field(default=None, ge=1, le=MAX_SIDE)
    """None, with a picture to start from: its own width; the model's if that is small."""
    height: int | None = Field(default=None, ge=1, le=MAX_SIDE)

    image: str | None = None
    """Path of a picture to start from."""
    strength: Share | None = None
    """How much of `image` is drawn anew: 0 leaves it, 1 keeps nothing. None: 0.6, or with a mask
    0.75, or where the picture is extended 1."""

    mask: str | None = None
    """Path of a picture of `image`'s size that says where to draw, as `open_mask` reads it:
    where it is white, or, if it is transparent anywhere, where it is transparent."""
    mask_invert: bool = False
    """Draw where the mask says to keep, and keep the rest."""
    mask_grow: Annotated[int, Field(ge=0, le=512)] = 0
    """Pixels by which the mask is made wider on every side, before it is blurred."""
    mask_blur: Annotated[int, Field(ge=0, le=256)] = 4
    """Deviation in pixels of the blur around the mask, over which old and new are blended."""
    inpaint_fill: Literal["original", "fill", "noise", "blank"] = "original"
    """What the masked part begins with: what is there, the blurred surroundings, noise, nothing."""
    only_masked: bool = False
    """Draw only the part around the mask, enlarged to width x height, and put it back."""
    padding: Pixels = 32
    """With `only_masked`: pixels around the mask that the network sees too."""
    extend: tuple[Pixels, Pixels, Pixels, Pixels] = (0, 0, 0, 0)
    """Pixels that `image` grows by: left, top, right, bottom. They are drawn (outpainting)."""

    hires: Annotated[float, Field(gt=1, le=8, allow_inf_nan=False)] | None = None
    """Enlarge the picture by this much, and draw it over in a second pass."""
    hires_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Steps of the second pass; None: as many as of the first."""
    hires_strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.7
    """How much the second pass draws anew."""
    hires_upscaler: str = "latent"
    """What enlarges, one of `hires.UPSCALERS`."""

    refiner: str | None = None
    """Path of a model that takes over on the way, as SDXL's refiner does. It reads the prompt with
    its own towers; LoRAs and embeddings are not put on it."""
    refiner_at: Share = 0.8
    """The part of the way, from noise 0 to picture 1, from which on the refiner draws."""

    mix: tuple[tuple[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]], ...] = ()
    """Further prompts and their weights beside the prompt's own, which is 1."""
    mix_by: Literal["embedding", "noise"] = "noise"
    walk: str | None = None
    """A prompt to walk to from the prompt, in `count` pictures that all begin with the same noise."""
    walk_span: tuple[Share, Share] = (0.0, 1.0)
    """The part of that way which is walked; a single picture is of the middle of it."""
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
    decoder: Literal["vae", "tiny"] = "vae"
    """What makes pixels of the latents: the autoencoder, or a tiny one that imitates it."""

    @field_validator("sampler")
    @classmethod
    def _sampler(cls, name: str | None) -> str | None:
        if name is not None:
            samplers.resolve(name)
        return name

    @field_validator("spacing")
    @classmethod
    def _spacing(cls, name: str | None) -> str | None:
        return None if name is None else samplers.spacing_named(name)

    @field_validator("noise")
    @classmethod
    def _noise(cls, name: str) -> str:
        return choose(name, NOISES, "noise")

    @field_validator("hires_upscaler")
    @classmethod
    def _upscaler(cls, name: str) -> str:
        return hires.resolve(name)

    @model_validator(mode="after")
    def _together(self) -> Request:
        if self.interval[0] > self.interval[1]:
            raise ValueError(f"the interval {self.interval} ends before it begins")
        if self.walk is not None and self.mix:
            raise ValueError("walk does not go with mix; one of them is wanted")
        if self.seed is not None and self.seed + self.count - 1 > MAX_SEED:
            raise ValueError(
                f"seed {self.seed} and count {self.count} pass the last seed {MAX_SEED}"
            )
        if self.masked and self.image is None:
            field = "extend" if self.mask is None else "mask"
            raise ValueError(f"{field} needs an image, of which a part is drawn anew")
        if self.only_masked and not self.masked:
            raise ValueError("only_masked needs a mask, or extend")
        if self.mask_invert and self.mask is None:
            raise ValueError("mask_invert needs a mask")
        if self.refiner is not None and self.clip_guidance:
            raise ValueError("clip_guidance does not go with refiner; one of them is wanted")
        if self.hires is not None and self.masked:
            raise ValueError(
                "hires is for whole pictures and does not go with mask or extend; only_masked "
                "draws a part at a higher resolution"
            )
        return self

    @property
    def masked(self) -> bool:
        """Only a part is drawn, and the rest comes back as it was."""
        return self.mask is not None or any(self.extend)

    @property
    def prompts(self) -> list[str]:
        """All that is wanted."""
        return [self.prompt, *(text for text, _ in self.mix), *([self.walk] if self.walk else [])]

    @property
    def seeds(self) -> list[int]:
        """Of each image; ValueError where `seed` was not filled in."""
        if self.seed is None:
            raise ValueError("the request has no seed yet; `resolve` chooses one")
        return [self.seed + (i if self.walk is None else 0) for i in range(self.count)]

    @property
    def walked(self) -> list[float]:
        """How far on the walk each image is, 0..1."""
        start, end = self.walk_span
        if self.count == 1:
            return [(start + end) / 2]
        return [start + (end - start) * i / (self.count - 1) for i in range(self.count)]

    @property
    def lora_tags(self) -> list[LoraTag]:
        """The LoRAs that its prompts name, <lora:name:weight>; the negative prompt's do nothing."""
        return [tag for prompt in self.prompts for tag in take_loras(prompt)[1]]

    def alone(self, i: int) -> Request:
        """The request of image i by itself; `seed` is filled in, as in `Progress.request`."""
        if self.seed is None or not 0 <= i < self.count:
            raise ValueError(f"image {i} of {self.count} with the seed {self.seed} has no request")
        seed, turned = self.seeds[i], self.variation_seed
        if turned is not None:
            turned += seed - self.seed
        span = self.walk_span if self.walk is None else (self.walked[i],) * 2
        fixed = {"seed": seed, "variation_seed": turned, "walk_span": span, "count": 1}
        return self.model_copy(update=fixed)

    def idle(self) -> dict[str, str]:
        """The fields that do nothing in this request, and the one that each of them needs."""
        idle: dict[str, str] = {}
        if self.image is None:
            idle["strength"] = "image"
        if not self.masked:
            idle |= dict.fromkeys(sorted(OF_MASK), "mask")
        elif not self.only_masked:
            idle["padding"] = "only_masked"
        if self.hires is None:
            idle |= dict.fromkeys(sorted(OF_HIRES), "hires")
        if self.variation_strength == 0:
            idle["variation_seed"] = "variation_strength"
        if self.walk is None:
            idle["walk_span"] = "walk"
        if self.refiner is None:
            idle["refiner_at"] = "refiner"
        return idle

    def record(self) -> dict[str, Any]:
        """Plain JSON values, less the fields that do nothing in this request."""
        idle = set(self.idle())
        if not self.masked:
            idle |= {"mask", "extend"}
        if self.decoder == "vae":
            idle |= {"decoder"}
        idle |= {name for name in ("walk", "refiner") if getattr(self, name) is None}
        return self.model_dump(mode="json", exclude=idle)


class Start(NamedTuple):
    """The picture that image to image starts from, and how much of it is drawn anew."""

    picture: Image.Image
    """RGB, as `images.open_image` reads it, before it is extended or cropped."""
    strength: float


class SecondPass(NamedTuple):
    """A second pass at a larger size, which draws the enlarged picture over."""

    scale: float
    steps: int
    strength: float
    upscaler: str


class ResolvedRequest(Request):
    """A request as one model carries it out: every default is filled in (`resolve`)."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    steps: int
    guidance: float
    sampler: str
    """The name of a file in samplers/."""
    spacing: str
    """One of `schedule.SPACINGS`."""
    width: int
    """Of the result before a second pass; with only_masked, of the part that is drawn."""
    height: int
    seed: int
    picture: Image.Image | None = Field(default=None, exclude=True, repr=False)
    """`image`, opened; it is not part of the record."""

    @property
    def start(self) -> Start | None:
        """The picture to start from; None: pure noise."""
        if self.picture is None or self.strength is None:
            return None
        return Start(self.picture, self.strength)

    @property
    def second_pass(self) -> SecondPass | None:
        """None: there is none."""
        if self.hires is None or self.hires_steps is None:
            return None
        return SecondPass(self.hires, self.hires_steps, self.hires_strength, self.hires_upscaler)


def seeded(request: Request) -> Request:
    """The request with a seed, a random one if it asks for none."""
    if request.seed not in (None, -1):
        return request
    return request.model_copy(update={"seed": secrets.randbelow(2**32)})


def resolve(model: Model, request: Request) -> ResolvedRequest:
    """The request with the model's defaults, a seed and plain names filled in, its image opened.

    Raises ValueError: a size that the model cannot draw, an image that cannot be read.
    """
    d = model.defaults
    name, spacing = samplers.resolve(d.sampler if request.sampler is None else request.sampler)
    if request.spacing is not None:
        spacing = request.spacing
    own = samplers.get(name).spec.guidance
    guidance = d.guidance if own is None else own
    picture = None if request.image is None else open_image(request.image)
    width, height = size_of(model, request, picture)
    filled: dict[str, Any] = {
        "steps": d.steps if request.steps is None else request.steps,
        "guidance": guidance if request.guidance is None else request.guidance,
        "sampler": name,
        "spacing": samplers.spacing_of(
            name, d.spacing if spacing is None else spacing, model.schedule
        ),
        "width": width,
        "height": height,
        "seed": seeded(request).seed,
        "picture": picture,
    }
    if request.image is not None and request.strength is None:
        masked = EXTEND_STRENGTH if any(request.extend) else MASK_STRENGTH
        filled["strength"] = masked if request.masked else STRENGTH
    if request.hires is not None and request.hires_steps is None:
        filled["hires_steps"] = filled["steps"]
    return ResolvedRequest.model_validate(dict(request) | filled)


def draws_any_size(model: Model) -> bool:
    """Whether a picture to start from keeps its own size."""
    return min(model.defaults.width, model.defaults.height) >= ANY_SIZE


def unit_of(model: Model) -> int:
    """Width and height must be multiples of this many pixels."""
    patch = getattr(getattr(model.backbone, "config", None), "patch_size", 1)
    return model.vae.config.downsample * patch


def size_of(model: Model, request: Request, picture: Image.Image | None) -> tuple[int, int]:
    """Width and height of the result before a second pass; with only_masked, of the part.

    picture: the request's image. ValueError for a size that is not a multiple of the unit, unless
    it is exactly that of a picture of which only a part is drawn.
    """
    d, unit = model.defaults, unit_of(model)
    own, exact = (d.width, d.height), False
    if picture is not None and not request.only_masked:
        left, top, right, bottom = request.extend
        width, height = picture.width + left + right, picture.height + top + bottom
        exact = request.masked and (
            request.width in (None, width) and request.height in (None, height)
        )
        if exact:
            own = (width, height)
        elif request.masked or draws_any_size(model):
            own = (max(width // unit, 1) * unit, max(height // unit, 1) * unit)
    size = (
        own[0] if request.width is None else request.width,
        own[1] if request.height is None else request.height,
    )
    for side, pixels in zip(("width", "height"), size, strict=True):
        if pixels > MAX_SIDE:
            raise ValueError(
                f"{request.image} makes a {side} of {pixels}; at most {MAX_SIDE} can be drawn, so "
                "width and height have to be given"
            )
        if pixels % unit and not exact:
            near = max(round(pixels / unit), 1) * unit
            raise ValueError(f"{side} must be a multiple of {unit}, such as {near}, got {pixels}")
    if request.hires is not None and max(size) * request.hires > MAX_SIDE:
        raise ValueError(
            f"hires {request.hires:g} makes {max(size) * request.hires:g} pixels of {max(size)}; "
            f"at most {MAX_SIDE} can be drawn"
        )
    return size
