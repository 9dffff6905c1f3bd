"""What can be asked for: every task is a field of `Request`, never another function.

Torch is imported only inside the functions that need it: `pellucid --help` reads the fields, and
must not wait for it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pellucid.messages import FieldMessage
from pellucid.plugins import choose, discover, nearest
from pellucid.prompt import Emphasis, LoraTag, WalkBy, split_and, take_loras, without_style
from pellucid.request.fields import (
    MASK,
    MODEL,
    OUTPUT,
    PICTURES,
    SECOND,
    START,
    STEER,
    declared,
    needs_of,
    option,
)
from pellucid.variations import MAX_PROMPT

MAX_SEED = 2**63 - 1  # as noise.MAX_SEED
MAX_SIDE = 4096
MAX_AND = 100  # prompts at once, each an evaluation of the network at every step
SHOWN = 5  # names that a message lists
STRENGTH, MASK_STRENGTH, EXTEND_STRENGTH = 0.6, 0.75, 1.0


def _short_enough(prompt: str) -> str:
    """A prompt in the limits, which are checked before any work. ValueError for others."""
    if len(prompt) > MAX_PROMPT:
        raise ValueError(
            f"a prompt must have at most {MAX_PROMPT:,} characters, got {len(prompt):,}"
        )
    together = len(split_and(prompt))
    if together > MAX_AND:
        raise ValueError(f"AND must join at most {MAX_AND} prompts, got {together:,}")
    return prompt


def _as_utf8(prompt: str) -> str:
    """Bytes that Python could not decode in its locale, as UTF-8. ValueError if they are not."""
    try:
        return prompt.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise ValueError("a prompt must be text in UTF-8") from None


Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Prompt = Annotated[str, AfterValidator(_as_utf8), AfterValidator(_short_enough)]
Pixels = Annotated[int, Field(ge=0, le=MAX_SIDE)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Steps = Annotated[int, Field(ge=1, le=1000)]


def _spacings() -> list[str]:
    from pellucid.schedule import SPACINGS

    return ["automatic", *SPACINGS]


def _noises() -> Iterable[str]:
    from pellucid.noise import NOISES

    return NOISES


def _upscalers() -> Iterable[str]:
    from pellucid.hires import UPSCALERS

    return UPSCALERS


class Request(BaseModel):
    """What to draw. None means: as the model's defaults say (`resolve` fills these in).

    A request is plain data: it comes from the command line, and it is stored in the picture that it
    made, from which it can be made again. Raises pydantic's ValidationError, which is a ValueError,
    naming the field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: Prompt = option("The prompt. Empty: draw anything.", "", flag="prompt")
    """In the grammar of `prompt`."""
    negative_prompt: Prompt = option("What to avoid.", "", flag="--negative")
    clip_skip: int | None = option(
        "Layer of the text encoder: 1 is the last, 2 the one before.", group=STEER, ge=1, le=100
    )
    """1 is the last layer that the text encoder was trained with, also where a file lacks it.
    None: the one that the model was trained with."""
    emphasis: Emphasis | None = option(
        "How prompt weights are applied to the embeddings.", group=STEER
    )
    """As in `model.TextEncoding`. None: what suits the model."""
    loras: tuple[tuple[str, Finite, Finite], ...] = option(
        "A LoRA and its weight.",
        (),
        MODEL,
        flag="--lora",
        form="FILE or FILE:WEIGHT",
        files="loras",
    )
    """Files, each with its weight in the network and in the text encoders. LoRAs that a prompt
    names in <lora:name:weight> are added to them."""
    embeddings: tuple[str, ...] = option(
        "A textual-inversion embedding.",
        (),
        MODEL,
        flag="--embedding",
        form="FILE",
        files="embeddings",
    )
    """Files, whose words can be used in the prompts."""
    seed: int | None = option(
        "The same seed gives the same picture; -1 is a random one.", ge=-1, le=MAX_SEED
    )
    """Image i has the seed `seed + i`. None or -1: chosen at random, and recorded."""
    count: int = option("Number of pictures; their seeds count up.", 1, ge=1, le=1000)
    steps: Steps | None = option("Sampling steps, 1 to 1000.")
    guidance: Finite | None = option("Scale of classifier-free guidance; 1 turns it off.")
    sampler: str | None = option(
        "The sampler: euler, ddim, dpmpp_2m, ...; an unknown name lists all.",
        choices=lambda: discover("pellucid.samplers"),
    )
    spacing: str | None = option(
        "How the steps are spaced: karras, uniform, ...; an unknown name lists all.",
        flag="--spacing --schedule",
        choices=_spacings,
    )
    width: Side | None = option(
        "Size in pixels; a model with a second stage draws at its own size and enlarges to this one.",
        flag="--size",
        form="WIDTHxHEIGHT",
    )
    """None, with a picture to start from: its own width; the model's if that is small."""
    height: Side | None = option("Size in pixels.", flag="--size", form="WIDTHxHEIGHT")

    image: str | None = option(
        "The picture to start from.", group=START, form="FILE", files=PICTURES
    )
    strength: Share | None = option(
        f"How much is redrawn, 0 to 1. Default: {STRENGTH:g}, with a mask {MASK_STRENGTH:g}, where the "
        f"picture is extended {EXTEND_STRENGTH:g}.",
        group=START,
        needs="image",
    )
    """0 leaves `image` as it is, 1 keeps nothing of it. None: 0.6, or with a mask 0.75, or where
    the picture is extended 1."""

    mask: str | None = option(
        "A picture of the same size: white or transparent is redrawn.",
        group=MASK,
        form="FILE",
        files=PICTURES,
    )
    """As `images.open_mask` reads it: where it is white, or, if it is transparent anywhere, where
    it is transparent."""
    mask_invert: bool = option(
        "Invert the mask.", False, MASK, flag="--invert-mask/--no-invert-mask", needs="mask"
    )
    mask_grow: int = option(
        "Grow the mask by this many pixels.", 0, MASK, needs="mask", ge=0, le=512
    )
    """Before it is blurred."""
    mask_blur: int = option(
        "Blur radius of the mask edge, in pixels.", 4, MASK, needs="mask", ge=0, le=256
    )
    """Standard deviation of a Gaussian blur."""
    inpaint_fill: Literal["original", "fill", "noise", "blank"] = option(
        "What the masked part starts from: the picture, its blurred surroundings, noise, or zeros.",
        "original",
        MASK,
        flag="--fill",
        needs="mask",
    )
    """What is there, the blurred surroundings, noise, zeros."""
    only_masked: bool = option(
        "Crop to the masked area and draw it at full resolution.",
        default=False,
        group=MASK,
        flag="--only-masked/--whole-picture",
        needs="mask",
    )
    """The part around the mask is enlarged to width x height."""
    padding: Pixels = option(
        "Context around the masked area, in pixels.", 32, MASK, needs="only_masked"
    )
    """The network gets them too."""
    extend: tuple[Pixels, Pixels, Pixels, Pixels] = option(
        "Outpainting: pixels to add at each side.",
        (0, 0, 0, 0),
        START,
        form="LEFT,TOP,RIGHT,BOTTOM",
    )
    """Left, top, right, bottom."""

    hires: Annotated[float, Field(gt=1, le=8, allow_inf_nan=False)] | None = option(
        "Enlarge the picture by this factor and redraw it.", group=SECOND
    )
    hires_steps: Steps | None = option("Steps of the second pass.", group=SECOND, needs="hires")
    """None: as many as in the first pass."""
    hires_strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = option(
        "How much the second pass redraws, 0 to 1.", 0.7, SECOND, needs="hires"
    )
    hires_upscaler: str = option(
        "latent, latent_antialiased, latent_bicubic, latent_bicubic_antialiased, latent_nearest, "
        "latent_nearest_exact, lanczos, nearest, diffusion, or a file of the ESRGAN family.",
        "latent",
        SECOND,
        files="upscalers",
        needs="hires",
        choices=_upscalers,
    )
    """How the picture is enlarged, one of `hires.UPSCALERS`, or a file. diffusion: by the model's second
    stage, or that of the included model if it has none."""

    refiner: str | None = option(
        "A model that does the last steps, such as SDXL's refiner.",
        group=SECOND,
        form="FILE",
        files="models",
    )
    """It reads the prompt with its own text encoders; it gets no LoRAs and no embeddings."""
    refiner_at: Share = option(
        "Switch to the refiner at this fraction of the time from noise to picture.",
        0.8,
        SECOND,
        needs="refiner",
    )

    arrange: bool | None = option(
        "Draw each thing of the prompt by itself, in a part of the picture. Default: where the model "
        "lists what it has learned.",
        group=STEER,
        flag="--arrange/--no-arrange",
    )
    """As `arrangement.arrange` reads the prompt."""
    mix: tuple[tuple[Prompt, Annotated[float, Field(gt=0, allow_inf_nan=False)]], ...] = option(
        "A further prompt and its weight.", (), STEER, form="TEXT or TEXT:WEIGHT"
    )
    """The prompt itself has the weight 1."""
    mix_by: Literal["embedding", "noise"] = option(
        "Mix the text embeddings or the noise predictions.", "noise", STEER, needs="mix"
    )
    walk: Prompt | None = option(
        "A prompt to interpolate to: --count pictures on the way, all of one seed.", group=STEER
    )
    walk_by: WalkBy | None = option(
        "Interpolate the text embeddings or the estimates of the picture. Default: as suits the model.",
        group=STEER,
        needs="walk",
    )
    """By embeddings the walk passes through what lies between the texts, which may be another thing. By
    estimates each picture is drawn towards both prompts at once."""
    walk_span: tuple[Share, Share] = option(
        "The part of the walk to draw.", (0.0, 1.0), STEER, flag=None, needs="walk"
    )
    """A single picture is drawn at the middle of it."""
    variation_seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = option(
        "The seed of other noise, which is mixed in.",
        group=STEER,
        needs="variation_strength",
    )
    """Of image i it is `variation_seed + i`. None: the seed after the image's own."""
    variation_strength: Share = option(
        "How much noise of the variation seed is mixed in, 0 to 1.", 0.0, STEER
    )
    rescale: Share = option(
        "How much guided estimates are rescaled, which high guidance overexposes, 0 to 1.",
        0.0,
        STEER,
    )
    style_guidance: Finite | None = option(
        "How much more the style in a prompt counts (', 3d style'); 0: as much as the rest.",
        group=STEER,
    )
    """Adds style_guidance (cond - cond without the style) to cond, and takes half as long again (Liu et
    al. 2022, "Composable Diffusion", eq. 11). None: 1 for a model that lists what it has learned; 0
    for others."""
    interval: tuple[Share, Share] = option(
        "The part of the run that has guidance, by the share of the picture in what is noisy: 0,1 is "
        "all of it, 0.2,0.8 its middle.",
        (0.0, 1.0),
        STEER,
        form="FROM,TO",
    )
    """In `guidance.signal_share`: 0 is noise, 1 the picture."""
    forecast: bool = option(
        "Faster: forecast the estimate of some steps from those before, in place of computing it.",
        False,
        STEER,
    )
    """From `forecast.FEWEST` steps on, with samplers that add no noise."""
    forecast_more: bool = option(
        "Faster still: forecast more steps, and reuse guidance in some of the others.",
        False,
        STEER,
        needs="forecast",
    )
    """As `forecast.computed_steps` says."""
    noise: str = option(
        "The kind of noise: gaussian, offset, pyramid, blue, pink.",
        "gaussian",
        STEER,
        choices=_noises,
    )
    """The kind of noise to start from, one of `noise.NOISES`."""
    eta: Share | None = option(
        "Share of fresh noise in each step, 0 to 1, for ddim (default 0) and samplers that add noise "
        "(default 1).",
        group=STEER,
    )
    """For samplers that have it."""
    clip_guidance: Finite = option("Scale of CLIP guidance; 0 turns it off.", 0.0, STEER)
    """Of the gradient of CLIP's similarity between the picture and the prompt."""
    decoder: Literal["vae", "tiny"] = option("Decoder of latents; tiny is fast.", "vae", OUTPUT)
    """The autoencoder, or a tiny one that imitates it."""

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_truth(cls, value: Any, field: ValidationInfo) -> Any:
        """ValueError for true and false where a number is needed, which they would pass for."""
        if isinstance(value, bool) and field.field_name is not None:
            kind = cls.model_fields[field.field_name].annotation
            if kind is not bool and bool not in get_args(kind):
                raise ValueError(f"it must not be true or false, got {str(value).lower()}")
        return value

    @field_validator("loras", "mix", mode="before")
    @classmethod
    def _weighted(cls, value: Any, field: ValidationInfo) -> Any:
        """Names and texts without all of their weights: those that are left out are as the one before,
        the first is 1."""
        if not isinstance(value, list | tuple):
            return value
        size = 3 if field.field_name == "loras" else 2
        rows = [[each] if isinstance(each, str) else each for each in value]
        return [
            [*row, *[row[-1] if len(row) > 1 else 1.0] * (size - len(row))]
            if isinstance(row, list | tuple) and row
            else row
            for row in rows
        ]

    @field_validator("sampler", "spacing", "noise", "hires_upscaler")
    @classmethod
    def _is_known(cls, name: str | None, field: ValidationInfo) -> str | None:
        """ValueError lists the choices, nearest first."""
        from pellucid import hires, samplers

        if name is None:
            return None
        if field.field_name == "sampler":
            samplers.resolve(name)  # another program's name may name a spacing too
            return name
        if field.field_name == "spacing":
            return samplers.spacing_named(name)
        if field.field_name == "hires_upscaler":
            return hires.resolve(name)
        return choose(name, _noises(), "noise")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.interval[0] > self.interval[1]:
            raise ValueError(
                FieldMessage(
                    "{interval} must be FROM,TO with FROM <= TO, got {first:g},{last:g}",
                    first=self.interval[0],
                    last=self.interval[1],
                )
            )
        if self.walk is not None and self.mix:
            raise ValueError(FieldMessage("{walk} and {mix} cannot be combined"))
        if self.seed is not None and self.seed + self.count - 1 > MAX_SEED:
            raise ValueError(
                FieldMessage(
                    "{seed} + {count} - 1 must be at most {last}, got {given}",
                    last=MAX_SEED,
                    given=self.seed + self.count - 1,
                )
            )
        if self.masked and self.image is None:
            field = "{extend}" if self.mask is None else "{mask}"
            raise ValueError(FieldMessage(f"{field} needs an {{image}}"))
        if self.only_masked and not self.masked:
            raise ValueError(FieldMessage("{only_masked} needs a {mask}, or {extend}"))
        if self.mask_invert and self.mask is None:
            raise ValueError(FieldMessage("{mask_invert} needs a {mask}"))
        if self.refiner is not None and self.clip_guidance:
            raise ValueError(FieldMessage("{clip_guidance} and {refiner} cannot be combined"))
        if self.hires is not None and self.masked:
            raise ValueError(
                FieldMessage(
                    "{hires} redraws whole pictures and cannot be combined with {mask} or {extend}; "
                    "{only_masked} draws a part at a higher resolution"
                )
            )
        return self

    @property
    def masked(self) -> bool:
        """Only a part is drawn, and the rest stays as it was."""
        return self.mask is not None or any(self.extend)

    @property
    def prompts(self) -> list[str]:
        """All prompts except the negative one."""
        walk = [] if self.walk is None else [self.walk]
        return [self.prompt, *(text for text, _ in self.mix), *walk]

    @property
    def walk_positions(self) -> list[float]:
        """How far on the walk each image is, 0..1."""
        start, end = self.walk_span
        if self.count == 1:
            return [(start + end) / 2]
        return [start + (end - start) * i / (self.count - 1) for i in range(self.count)]

    def part(self, first: int, count: int) -> Self:
        """The request of `count` of its images, each as in the whole.

        ValueError without a seed: the images of the parts would not be those of the whole.
        """
        seed, variation_seed, span = self.seed, self.variation_seed, self.walk_span
        if seed in (None, -1):
            raise ValueError(f"a part needs the seed of the whole request, got {seed}")
        if self.walk is not None:
            positions = self.walk_positions[first : first + count]
            span = (positions[0], positions[-1])
        else:
            seed += first
            variation_seed = None if variation_seed is None else variation_seed + first
        changes = {"seed": seed, "variation_seed": variation_seed, "walk_span": span}
        return self.model_copy(update={**changes, "count": count})

    @property
    def lora_tags(self) -> list[LoraTag]:
        """The LoRAs that its prompts name, <lora:name:weight>; the negative prompt's do nothing."""
        return [tag for prompt in self.prompts for tag in take_loras(prompt)[1]]

    def idle(self) -> dict[str, str]:
        """The fields that do nothing in this request, and the one that each of them needs."""
        needs = needs_of(type(self))
        unset = {need for need in needs.values() if not self._is_set(need)}
        above = {need: needs[need] for need in unset if needs.get(need) in unset}
        return {name: above.get(need, need) for name, need in needs.items() if need in unset}

    def _is_set(self, name: str) -> bool:
        return self.masked if name == "mask" else getattr(self, name) not in (None, False, 0, ())

    def record(self) -> dict[str, Any]:
        """Plain JSON values, less the fields that do nothing in this request."""
        idle = set(self.idle())
        if not self.masked:
            idle |= {"mask", "extend"}
        if self.decoder == "vae":
            idle |= {"decoder"}
        idle |= {name for name in ("walk", "refiner") if getattr(self, name) is None}
        if without_style(self.prompt) is None:
            idle |= {"style_guidance"}
        return self.model_dump(mode="json", exclude=idle)


def instead_of(name: str) -> str:
    """What a message says of a name that is no field: the fields of the option of this name, else the
    nearest ones."""
    flag = f"--{name.replace('_', '-')}"
    fields = [
        each
        for each in Request.model_fields
        if flag in (declared(Request, each)["flag"] or "").split()
    ]
    if fields:
        kind = "field of {} is" if len(fields) == 1 else "fields of {} are"
        return f"the {kind.format(flag)} {' and '.join(fields)}"
    return f"nearest: {', '.join(nearest(name, Request.model_fields)[:SHOWN])}"


def chosen_seed(request: Request) -> int:
    """The request's seed, or a random one."""
    return secrets.randbelow(2**32) if request.seed in (None, -1) else int(request.seed)
