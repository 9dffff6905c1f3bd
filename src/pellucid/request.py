"""What can be asked for: every task is a field of `Request`, never another function.

Each field is declared once, with its help, its group and the way the command line writes it
(`option`). The command line and the HTTP interfaces derive their options from these declarations,
so that a new field appears everywhere by itself.

Torch is imported only inside the functions that need it: `pellucid --help` reads the fields, and
must not wait for it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Self,
    cast,
    get_args,
    get_origin,
)

from PIL import Image
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pellucid.arrangement import Region, arrange
from pellucid.lexicon import LeftOut, expand_emoji, not_learned
from pellucid.messages import FieldMessage
from pellucid.plugins import choose, discover, nearest
from pellucid.prompt import Emphasis, LoraTag, WalkBy, split_and, take_loras

if TYPE_CHECKING:
    from pellucid.model import Model

MAX_SEED = 2**63 - 1  # as noise.MAX_SEED
MAX_SIDE = 4096
MAX_PROMPT = 100_000  # characters; OpenAI allows 32,000
MAX_AND = 100  # prompts at once, each an evaluation of the network at every step
# Models of at least this width draw any size; a smaller one draws what it was trained on.
ANY_SIZE = 256
# With a second stage the shorter side is drawn at the model's own size, which limits the longer one.
MOST_RATIO = 8
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

# Groups of fields: a panel of --help each. Fields without a group come first.
PICTURES = "pictures"  # files that are pictures, which no folder of the settings has
MODEL, START, MASK = "On the model", "Picture to start from", "Mask"
SECOND, STEER, OUTPUT = "Second pass", "Noise and guidance", "Output"


class Choices(NamedTuple):
    """The values of a field that has a fixed list of them, read when they are needed."""

    names: Callable[[], Iterable[str]]


def _spacings() -> list[str]:
    from pellucid.schedule import SPACINGS

    return ["automatic", *SPACINGS]


def _noises() -> Iterable[str]:
    from pellucid.noise import NOISES

    return NOISES


def _upscalers() -> Iterable[str]:
    from pellucid.hires import UPSCALERS

    return UPSCALERS


def option(
    help: str,
    default: Any = None,
    group: str = "",
    *,
    flag: str | None = "",
    form: str = "",
    files: str = "",
    needs: str | None = None,
    choices: Callable[[], Iterable[str]] | None = None,
    **limits: Any,
) -> Any:
    """A field of `Request`, with all that an interface has to know of it.

    help: one short sentence. group: the fields that it is shown with. flag: how the command line
    writes it, where that is not --the-name; without dashes it is an argument, None: it has none.
    Fields with the same flag are written together, as --size is. form: the format of
    its text, where it is not one word or number. files: what the files are that it names, if it names
    any: PICTURES, or the folder of the settings that they are in. An HTTP client never gives a path
    there. needs: the field without which this one does nothing. choices: gives its values, where they
    are a list that its type does not have. limits: as pydantic's Field takes them.
    """
    extra: dict[str, Any] = {
        "group": group,
        "flag": flag,
        "form": form,
        "files": files,
        "needs": needs,
    }
    field = Field(default, description=help, json_schema_extra=extra, **limits)
    if choices is not None:  # not in `extra`, which must be JSON
        field.metadata.append(Choices(choices))
    return field


def declared(request: BaseModel | type[BaseModel], name: str) -> dict[str, Any]:
    """What `option` says of a field: its group, flag, form, files, needs."""
    kind = request if isinstance(request, type) else type(request)
    return cast("dict[str, Any]", kind.model_fields[name].json_schema_extra or {})


def choices_of(request: type[BaseModel], name: str) -> Callable[[], list[str]] | None:
    """Gives the values of a field, as its type or `option` has them; None: it has no list of them."""
    field = request.model_fields[name]
    listed = next((each.names for each in field.metadata if isinstance(each, Choices)), None)
    if listed is not None:
        return lambda: list(listed())
    types = (field.annotation, *get_args(field.annotation))
    literal = next((each for each in types if get_origin(each) is Literal), None)
    return None if literal is None else lambda: list(get_args(literal))


@lru_cache
def needs_of(request: type[BaseModel]) -> dict[str, str]:
    """The fields that do nothing without another one, and that one."""
    needs = {name: declared(request, name).get("needs") for name in request.model_fields}
    return {name: need for name, need in needs.items() if need}


@lru_cache
def file_fields(request: type[BaseModel]) -> dict[str, str]:
    """The fields that name files, and what these are, as `option` has it."""
    kinds = {name: declared(request, name).get("files") for name in request.model_fields}
    return {name: kind for name, kind in kinds.items() if kind}


def files_in(value: Any) -> list[str]:
    """The names in the value of a field that names files, as `with_files` changes them."""
    found: list[str] = []

    def take(name: str) -> str:
        found.append(name)
        return name

    with_files(value, take)
    return found


def with_files(value: Any, change: Callable[[str], str]) -> Any:
    """The value of a field that names files, with other names: of one, of several, or of several with
    weights. What has another form stays as it is."""
    if isinstance(value, str):
        return change(value)
    if not isinstance(value, list | tuple):
        return value
    each = [
        type(entry)((with_files(entry[0], change), *entry[1:]))
        if isinstance(entry, list | tuple) and entry
        else with_files(entry, change)
        for entry in value
    ]
    return type(value)(each)


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
        "ddim, euler, dpmpp_2m, ...", choices=lambda: discover("pellucid.samplers")
    )
    spacing: str | None = option(
        "How the steps are spaced: karras, uniform, ...",
        flag="--spacing --schedule",
        choices=_spacings,
    )
    width: Side | None = option(
        "Size in pixels; a model with an upscaler draws at its own size and enlarges to this one.",
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
        "What the masked part starts from.", "original", MASK, flag="--fill", needs="mask"
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
        "Interpolate the text embeddings or the estimates of the picture: embeddings, estimates. "
        "Default: as suits the model.",
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
        "Variation seed: interpolate towards the noise of this seed.",
        group=STEER,
        needs="variation_strength",
    )
    """Of image i it is `variation_seed + i`. None: the seed after the image's own."""
    variation_strength: Share = option("Variation strength, 0 to 1.", 0.0, STEER)
    rescale: Share = option("Guidance rescale, 0 to 1.", 0.0, STEER)
    interval: tuple[Share, Share] = option(
        "The part of the run that has guidance, such as 0.2,0.8.", (0.0, 1.0), STEER, form="FROM,TO"
    )
    """In `guidance.signal_share`: 0 is noise, 1 the picture."""
    forecast: bool = option(
        "Faster: forecast the estimate of some steps from those before, in place of computing it.",
        False,
        STEER,
    )
    """From `forecast.FEWEST` steps on, with samplers that add no noise."""
    noise: str = option(
        "gaussian, offset, pyramid, blue, pink.", "gaussian", STEER, choices=_noises
    )
    """The kind of noise to start from, one of `noise.NOISES`."""
    eta: Share | None = option("How much fresh noise a step of ddim adds, 0 to 1.", group=STEER)
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
        return self.model_dump(mode="json", exclude=idle)


class Start(NamedTuple):
    """The picture that image to image starts from, and how much of it is redrawn."""

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
    drawn_size: tuple[int, int] = Field(default=(0, 0), exclude=True)
    """Width and height that the backbone draws in the first pass; with a second stage not those of the
    result. It is not part of the record, which determines it."""
    regions: tuple[Region, ...] = Field(default=(), exclude=True)
    """The parts of the picture that are drawn by themselves, in the place of `prompt`; none: the
    whole. They follow from the record too."""
    left_out: LeftOut = Field(default=LeftOut(), exclude=True)
    """What the model does not read of the prompts."""
    seed: int
    picture: Image.Image | None = Field(default=None, exclude=True, repr=False)
    """`image`, opened; it is not part of the record."""
    others: tuple[ResolvedRequest, ...] = Field(default=(), exclude=True, repr=False)
    """Requests whose pictures are drawn in the same batch, after its own; `plan.batch_key` says
    which."""

    def read(self, text: str) -> str:
        """A text as the model reads it."""
        return self.left_out.rest(text)

    @property
    def members(self) -> list[ResolvedRequest]:
        """This request by itself, and the others of its batch."""
        return [self.model_copy(update={"others": ()}), *self.others]

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

    @property
    def largest_size(self) -> tuple[int, int]:
        """Width and height of what the backbone draws in the largest pass."""
        scale = 1.0 if self.second_pass is None else self.second_pass.scale
        return round(self.drawn_size[0] * scale), round(self.drawn_size[1] * scale)

    @property
    def seeds(self) -> list[int]:
        """The seed of each image; on a walk all have the same."""
        own = [self.seed + (i if self.walk is None else 0) for i in range(self.count)]
        return own + [seed for other in self.others for seed in other.seeds]

    def alone(self, i: int) -> ResolvedRequest:
        """The request of its own image i by itself. ValueError if there is none."""
        if not 0 <= i < self.count:
            raise ValueError(f"image must be between 0 and {self.count - 1}, got {i}")
        return self.part(i, 1)


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


def resolve(model: Model, request: Request) -> ResolvedRequest:
    """The request with the model's defaults, a seed and plain names filled in, its image opened, and
    its emoji as words.

    Raises ValueError: a size that the model cannot draw, an image that cannot be read.
    """
    from pellucid import samplers
    from pellucid.images.load import open_image

    request, d = in_words(model, request), model.defaults
    name, spacing = samplers.resolve(d.sampler if request.sampler is None else request.sampler)
    if request.spacing is not None:
        spacing = request.spacing
    own = samplers.get(name).spec.guidance
    guidance = d.guidance if own is None else own
    picture = None if request.image is None else open_image(request.image)
    width, height = size_of(model, request, picture)
    drawn_size, regions = canvas_of(model, request, drawn_size_of(model, width, height))
    filled: dict[str, Any] = {
        "steps": d.steps if request.steps is None else request.steps,
        "guidance": guidance if request.guidance is None else request.guidance,
        "sampler": name,
        "spacing": samplers.spacing_of(
            name, d.spacing if spacing is None else spacing, model.schedule
        ),
        "walk_by": d.walk_by if request.walk_by is None else request.walk_by,
        "width": width,
        "height": height,
        "drawn_size": drawn_size,
        "regions": regions,
        "left_out": left_out_of(model, request),
        "seed": chosen_seed(request),
        "picture": picture,
    }
    if request.image is not None and request.strength is None:
        masked = EXTEND_STRENGTH if any(request.extend) else MASK_STRENGTH
        filled["strength"] = masked if request.masked else STRENGTH
    if request.hires is not None and request.hires_steps is None:
        filled["hires_steps"] = filled["steps"]
    return ResolvedRequest.model_validate(dict(request) | filled)


def in_words(model: Model, request: Request) -> Request:
    """The request with the emoji in its prompts as words, for a model that lists what it has learned."""
    words = model.lexicon
    if words is None:
        return request
    each = {
        name: expand_emoji(text, words)
        for name in ("prompt", "negative_prompt", "walk")
        if (text := getattr(request, name)) is not None
    }
    mix = tuple((expand_emoji(text, words), weight) for text, weight in request.mix)
    return request.model_copy(update={**each, "mix": mix})


def canvas_of(
    model: Model, request: Request, size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[Region, ...]]:
    """Width and height of the first pass, and the regions in it: larger than `size` where the things of
    the prompt are drawn one by one."""
    arranged = None
    if model.lexicon is not None and no_arrangement(request) is None:
        arranged = arrange(described(request), model.lexicon)
    if arranged is None:
        return size, ()
    width, height = (side * arranged.side for side in size)
    return (width, height), arranged.regions(width, height)


def described(request: Request) -> str:
    """What the prompt says to draw, for a model that lists what it has learned."""
    return LeftOut(negated=True).rest(take_loras(request.prompt)[0])


def left_out_of(model: Model, request: Request) -> LeftOut:
    """What a model which lists what it has learned does not read. A LoRA may know other words."""
    if model.lexicon is None:
        return LeftOut()
    found = LeftOut(negated=True)
    if request.loras or request.lora_tags:
        return found
    also = [word.lower() for word in model.tokenizer.words]
    texts = (*request.prompts, request.negative_prompt)
    rest = [not_learned(found.rest(text), model.lexicon, also) for text in texts]
    return found._replace(words=frozenset().union(*rest))


def no_arrangement(request: Request) -> str | None:
    """The field that keeps the things of a prompt from being drawn one by one; None if none does."""
    if request.arrange is False:
        return "arrange"
    fields = ("image", "mix", "walk", "clip_guidance", "refiner")
    return next((name for name in fields if getattr(request, name)), None)


def draws_any_size(model: Model) -> bool:
    """Whether a picture to start from keeps its own size."""
    return min(model.drawn_size) >= ANY_SIZE


def unit_of(model: Model) -> int:
    """Width and height must be multiples of this many pixels."""
    patch = getattr(getattr(model.backbone, "config", None), "patch_size", 1)
    return model.vae.config.downsample * patch


def drawn_size_of(model: Model, width: int, height: int) -> tuple[int, int]:
    """Width and height that the backbone draws for a result of this size.

    With a second stage, the shorter side is always the model's own, and the ratio of the sides is that
    of the result, as far as the backbone allows it. ValueError where the sides differ too much for that.
    """
    if model.second_stage is None:
        return width, height
    if max(width, height) > MOST_RATIO * min(width, height):
        raise ValueError(
            f"the longer side must be at most {MOST_RATIO} times the shorter one with this model, "
            f"got {width}x{height}"
        )
    scale, unit = min(model.drawn_size) / min(width, height), unit_of(model)
    return round(width * scale / unit) * unit, round(height * scale / unit) * unit


def size_of(model: Model, request: Request, picture: Image.Image | None) -> tuple[int, int]:
    """Width and height of the result before a second pass; with only_masked, of the part.

    picture: the request's image. ValueError for a size that is not a multiple of the unit, unless
    it is exactly that of a picture of which only a part is drawn, or a second stage makes it.
    """
    d, unit = model.defaults, 1 if model.second_stage is not None else unit_of(model)
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
