"""What a run will do, decided before it begins, by functions of the model and the request.

`planned` gives all of it: the levels of each pass, which steps are the refiner's, the sampler's options,
the picture to start from, and what the user should be warned of. All that cannot be done is refused
there.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass

from pellucid import forecast, hires, inpaint, samplers
from pellucid.arrangement import JOINING, NUMBERS, QUANTITIES, SIZES, why_whole
from pellucid.colors import take_ground
from pellucid.conditioning import add_up, chunked, long_prompt_warning, weighted_prompts
from pellucid.guidance import signal_share
from pellucid.inpaint import Canvas
from pellucid.lexicon import (
    Unknown,
    body_parts,
    describe,
    describe_stand_ins,
    negations,
    unknown_words,
)
from pellucid.messages import FieldMessage
from pellucid.model import Model
from pellucid.preview import decoder_of
from pellucid.prompt import (
    EXCERPT,
    each_step,
    split_and,
    take_loras,
    unbalanced,
    unread,
    unsupported,
    without_style,
)
from pellucid.request import Request, ResolvedRequest, resolve
from pellucid.request.resolving import described, no_arrangement
from pellucid.request.sizes import draws_any_size, unit_of
from pellucid.schedule import MAX_STEPS, Level

SHOWN = 3  # texts of a prompt that the warnings name
KEPT = 0.4  # strength of a second pass up to which shapes stay
SYNTAX = re.compile(r"\b(?:AND|BREAK)\b")  # words of a prompt that are no text


@dataclass(frozen=True)
class Plan:
    """What a run does."""

    request: ResolvedRequest
    passes: list[list[Level]]
    """The levels of each pass."""
    splits: list[list[tuple[int, int]]]
    """Which steps of each pass are the model's and which the refiner's, as `split_at_refiner`."""
    options: dict[str, float]
    """The sampler's own."""
    canvas: Canvas | None
    """The picture to start from, and what is drawn of it; None: noise."""
    warnings: list[str]
    """What is done differently from what was asked. Of a batch of several requests, only those about all
    of them."""

    @property
    def steps(self) -> int:
        """Of all passes."""
        return sum(len(levels) - 1 for levels in self.passes)


def planned(
    model: Model, asked: Request, request: ResolvedRequest, refiner: Model | None = None
) -> Plan:
    """The plan of a run; `request` is `asked`, resolved, perhaps with `others`. No weights are needed.

    Raises ValueError: a setting that the model, the sampler or the refiner cannot do, requests that
    cannot share a batch, a mask that does not fit.
    """
    check_refiner(model, request, refiner)
    if request.others:
        keys = {batch_key(model, each) for each in request.members}
        if len(keys) > 1 or None in keys:
            raise ValueError("the requests cannot share a batch: they differ in more than prompts")
    check_clip_guidance(model, request)
    decoder_of(model, request.decoder)
    options = sampler_options(request)
    passes = levels_of(model, request)
    canvas = None if request.start is None else inpaint.prepare(request, unit_of(model))
    warnings = [] if request.others else warnings_of(model, asked, request, refiner, passes)
    return Plan(
        request=request,
        passes=passes,
        splits=[split_at_refiner(refiner, request, levels) for levels in passes],
        options=options,
        canvas=canvas,
        warnings=warnings + ([] if canvas is None else list(canvas.warnings)),
    )


def levels_of(model: Model, request: ResolvedRequest) -> list[list[Level]]:
    """The levels of each pass; with strength 0 the first one has a single level, the clean one.

    ValueError for a second pass that would be part of more than `MAX_STEPS` steps.
    """

    def levels(steps: int) -> list[Level]:
        return samplers.levels_for(request.sampler, model.schedule, steps, request.spacing)

    passes = [levels(request.steps)[request.steps - img2img_steps(request) :]]
    second = request.second_pass
    if second is not None:
        whole = hires.whole_steps(second.steps, second.strength)
        if whole > MAX_STEPS:
            raise ValueError(
                FieldMessage(
                    "{hires_steps} {steps} at {hires_strength} {strength:g} are the last of {whole} "
                    "steps, and at most {most} are allowed; use fewer steps or more strength",
                    steps=second.steps,
                    strength=second.strength,
                    whole=whole,
                    most=MAX_STEPS,
                )
            )
        passes.append(levels(whole)[whole - second.steps :])
    return passes


def img2img_steps(request: ResolvedRequest) -> int:
    """How many of the first pass's steps are drawn: all, or from a picture as many as strength says."""
    if request.start is None:
        return request.steps
    # As diffusers: int(). The tiny number is there because 0.29 * 100 is 28.999...
    return int(request.start.strength * request.steps + 1e-6)


def split_at_refiner(
    refiner: Model | None, request: Request, levels: Sequence[Level]
) -> list[tuple[int, int]]:
    """Which steps of a pass are the model's and which the refiner's, each (first, end).

    As in diffusers, `refiner_at` is a fraction of the time and not of the number of steps.
    """
    count = len(levels) - 1
    if refiner is None:
        return [(0, count)]
    until = round(refiner.schedule.T * (1 - request.refiner_at))
    switch = sum(level.t >= until for level in levels[:-1])
    return [(0, switch), (switch, count)]


def sampler_options(request: ResolvedRequest) -> dict[str, float]:
    """The sampler's own options that the request sets. ValueError for one that it does not have."""
    if request.eta is None:
        return {}
    if "eta" not in inspect.signature(samplers.get(request.sampler).sample).parameters:
        raise ValueError(
            FieldMessage("the sampler {name!r} has no {eta}; ddim has", name=request.sampler)
        )
    return {"eta": request.eta}


def no_forecast(request: ResolvedRequest, steps: int) -> str | None:
    """Why a pass of so many steps has no forecast, where the request asks for one; None if it has."""
    if steps < forecast.FEWEST:
        return f"{steps} steps are too few, {forecast.FEWEST} are needed"
    if samplers.get(request.sampler).spec.order is None:
        return f"the sampler {request.sampler!r} adds noise or chooses its own steps"
    if request.eta:
        return "eta adds noise"
    return "clip_guidance needs the network" if request.clip_guidance else None


def no_more_forecasts(model: Model, request: ResolvedRequest) -> str | None:
    """Why no more steps are forecast, where the request asks for it; None if they are. Above a model's
    own guidance the pictures change too much."""
    own = model.defaults.guidance
    if request.guidance <= own:
        return None
    return f"guidance {request.guidance:g} is above {own:g}, which is {model.title}'s own"


def faster(model: Model, request: Request) -> Request:
    """The request with `forecast` and `forecast_more`, where it does not say them itself and the steps
    allow it."""
    said = request.model_fields_set
    if "forecast" in said and ("forecast_more" in said or not request.forecast):
        return request
    resolved = resolve(model, request)
    why = [no_forecast(resolved, len(levels) - 1) for levels in levels_of(model, resolved)]
    if None not in why:
        return request
    more = no_more_forecasts(model, resolved) is None
    if "forecast_more" in said:
        more = request.forecast_more
    return request.model_copy(update={"forecast": True, "forecast_more": more})


def batch_key(model: Model, request: ResolvedRequest) -> str | None:
    """Requests with the same key can be drawn in one batch, and every picture is as in a batch of its
    own request; None: this one shares no batch.

    They differ in seed, count and prompts alone, and their prompts have as many chunks. Not shared:
    pictures to start from, several prompts in one picture, and what depends on the seed of the first
    picture or on the whole batch.
    """
    prompts = weighted_prompts(request)
    if (
        (request.image, request.walk, request.embeddings, request.regions) != (None, None, (), ())
        or (request.clip_guidance, request.variation_strength) != (0, 0)
        or len(prompts) > 1
        or not add_up(prompts)
        or samplers.get(request.sampler).spec.adaptive
    ):
        return None
    second = request.second_pass
    texts = request.in_every_style(prompts[0][0])
    if request.guidance != 1:
        texts.append(request.read(take_loras(request.negative_prompt)[0]))
    chunks = max(
        len(chunked(model.tokenizer, text))
        for each in texts
        for text in set(each_step(each, request.steps, 0 if second is None else second.steps))
    )
    same = request.record()
    for name in ("prompt", "negative_prompt", "seed", "count"):
        del same[name]
    return json.dumps([same, request.lora_tags, chunks], sort_keys=True)


# ---------------------------------------------------------------- what cannot be done


def check_refiner(model: Model, request: Request, refiner: Model | None) -> None:
    """ValueError if the request's refiner is missing, or cannot continue with the model's latents."""
    if refiner is None:
        if request.refiner is not None:
            raise ValueError(f"the request names the refiner {request.refiner!r}; none is given")
        return
    ours, theirs = model.vae.config, refiner.vae.config
    same = ("latent_channels", "downsample", "scaling_factor", "shift_factor")
    if any(getattr(ours, name) != getattr(theirs, name) for name in same):
        raise ValueError(
            f"the refiner {refiner.name} has other latents than {model.title}; it must have the same "
            "kind of autoencoder"
        )
    if model.schedule != refiner.schedule:
        raise ValueError(
            f"the refiner {refiner.name} has another noise schedule than {model.title}; it must have "
            "the same"
        )


def check_clip_guidance(model: Model, request: ResolvedRequest) -> None:
    """ValueError if CLIP guidance is asked for and the model or the sampler does not have it."""
    if not request.clip_guidance:
        return
    if samplers.get(request.sampler).spec.guided:  # the unguided noise that it puts back undoes it
        raise ValueError(
            FieldMessage(
                "{clip_guidance} does not work with the sampler {name!r}; with ddim it does",
                name=request.sampler,
            )
        )
    missing = missing_for_clip_guidance(model)
    if missing is not None:
        raise ValueError(
            FieldMessage(
                "{clip_guidance} needs {missing}, which {model} does not have",
                missing=missing,
                model=model.title,
            )
        )


def missing_for_clip_guidance(model: Model) -> str | None:
    """What CLIP guidance needs and the model does not have; None: it has all."""
    if model.vision is None:
        return "CLIP's picture tower"
    if model.text.text_projection is None or model.text_2 is not None:
        return "a single text tower with a projection"
    return None


# ---------------------------------------------------------------- what the user should know


def warnings_of(
    model: Model,
    asked: Request,
    request: ResolvedRequest,
    refiner: Model | None,
    passes: Sequence[Sequence[Level]],
) -> list[str]:
    """What the run does differently from what was asked; `request` is `asked`, resolved."""
    default = Request()
    warnings = prompt_warnings(model, request, [len(levels) - 1 for levels in passes])
    warnings += [
        FieldMessage(f"{{{field}}} does nothing without {{{needed}}}")
        for field, needed in asked.idle().items()
        if getattr(asked, field) != getattr(default, field)
    ]
    if refiner is not None:
        splits = [split_at_refiner(refiner, request, levels) for levels in passes]
        if all(first == end for _, (first, end) in splits):
            warnings.append(
                FieldMessage(
                    "{refiner_at} {given:g} gives the refiner no steps; use more steps or a smaller "
                    "{refiner_at}",
                    given=request.refiner_at,
                )
            )
    if asked.style_guidance and without_style(asked.prompt) is None:
        warnings.append(
            FieldMessage("{style_guidance} does nothing: the prompt names no style (', 3d style')")
        )
    warnings += picture_warnings(model, asked, request)
    warnings += guidance_warnings(asked, request, passes)
    if asked.arrange and not request.regions:
        warnings.append(FieldMessage("{arrange} does nothing: {why}", why=no_regions(model, asked)))
    if request.forecast:
        why = [no_forecast(request, len(levels) - 1) for levels in passes]
        if why[0] is not None and None not in why:
            warnings.append(FieldMessage("{forecast} does nothing: {why}", why=why[0]))
        elif request.forecast_more and (more := no_more_forecasts(model, request)) is not None:
            warnings.append(FieldMessage("{forecast_more} does nothing: {why}", why=more))
    if inpaint.sees_masks(model) and not request.masked:
        warnings.append(
            f"{model.title} is for inpainting; without a mask it draws the whole picture"
        )
    return warnings


def no_regions(model: Model, request: Request) -> str:
    """Why a request that asks for an arrangement of its things has none."""
    if model.lexicon is None:
        return f"{model.title} does not list what it has learned"
    field = no_arrangement(request)
    if field is not None:
        return f"the request has {field}"
    return "the prompt does not name several things that the model has learned"


def left_out_warnings(model: Model, request: ResolvedRequest, unknown: Set[str]) -> list[str]:
    """What the model does not read of the prompts, and things that it draws as a whole. unknown: words
    that have a warning already."""
    if model.lexicon is None:
        return []
    warnings: list[str] = []
    parts = sorted({what for text in request.prompts for what in negations(text)})
    if parts:
        warnings.append(
            FieldMessage(
                "{model} does not understand what a prompt says not to draw; left out: {parts}. Name it "
                "in {negative_prompt}",
                model=model.title,
                parts=", ".join(map(repr, parts)),
            )
        )
    parts = sorted({what for text in request.prompts for what in body_parts(text)})
    if parts:
        listed = ", ".join(map(repr, parts))
        warnings.append(
            f"left out, as {model.title} draws whole things and not their parts: {listed}"
        )
    laid_out = {*NUMBERS, *QUANTITIES, *SIZES, *JOINING} if request.regions else set()
    words = sorted(request.left_out.words - laid_out - unknown)
    if words:
        listed = ", ".join(map(repr, words))
        warnings.append(f"left out, as {model.title} has not learned them: {listed}")
    if not request.regions and no_arrangement(request) is None:
        why = why_whole(described(model, request), model.lexicon)
        if why:
            warnings.append(
                FieldMessage(
                    "the prompt is drawn as a whole, where {model} mixes its things up: " + why,
                    model=model.title,
                )
            )
    return warnings


def prompt_warnings(model: Model, request: ResolvedRequest, counts: Sequence[int]) -> list[str]:
    """Brackets without a partner, texts that no step uses, long prompts, and words that the model has
    not learned. counts: the steps of each pass."""
    prompts = list(dict.fromkeys((*request.prompts, request.negative_prompt)))
    warnings = [check(prompt) for prompt in prompts for check in (unbalanced, unsupported)]
    warnings += [
        f"{text[:EXCERPT]!r} in the prompt is not used in any of the {sum(counts)} steps; see "
        "`pellucid tokens`"
        for prompt in prompts
        for part, _ in split_and(take_loras(prompt)[0])
        for text in unread(part, *counts)[:SHOWN]
    ]
    warnings += [
        long_prompt_warning(model.tokenizer, request.read(prompt), *counts) for prompt in prompts
    ]
    unknown: list[Unknown] = []
    if model.lexicon is not None and not (request.loras or request.lora_tags):  # they add words
        words = [word.lower() for word in model.tokenizer.words]
        read = (take_loras(prompt)[0] for prompt in request.prompts)
        if request.layout is not None and request.layout.ground is not None:
            read = (take_ground(text)[0] for text in read)
        texts = (SYNTAX.sub(" ", text) for text in read)
        unknown = unknown_words(" . ".join(texts), model.lexicon, words)
        instead = request.left_out.instead
        unknown = [each for each in unknown if each.word not in dict(instead)]
        warnings.append(describe_stand_ins(instead, model.title))
        said = describe(unknown, model.title)
        if said is not None and request.left_out.words.issuperset(each.word for each in unknown):
            said += f", and leaves {'it' if len(unknown) == 1 else 'them'} out"
        warnings.append(said)
    warnings += left_out_warnings(model, request, {each.word for each in unknown})
    warnings += empty_warnings(request)
    warnings += [
        f"{text.strip()[:EXCERPT]!r} in the prompt has the weight 0 and does nothing"
        for prompt in prompts
        for text, weight in split_and(take_loras(prompt)[0])
        if weight == 0
    ]
    if request.emphasis is not None and not any(set("([") & set(prompt) for prompt in prompts):
        warnings.append(FieldMessage("{emphasis} does nothing: no prompt has a weight"))
    if request.walk is not None and request.count == 1 and len(set(request.walk_span)) > 1:
        warnings.append(
            FieldMessage("{walk} draws only the middle of the way with a {count} of 1; use more")
        )
    return [warning for warning in warnings if warning is not None]


def empty_warnings(request: ResolvedRequest) -> list[str]:
    """Texts of the request that have no words."""
    texts = (
        ("the {prompt} is empty: the model draws anything", [request.prompt]),
        ("a text of {mix} is empty", [text for text, _ in request.mix]),
        ("the text of {walk} is empty", [] if request.walk is None else [request.walk]),
    )
    return [
        FieldMessage(message)
        for message, given in texts
        if not all(take_loras(text)[0].strip() for text in given)
    ]


def guidance_warnings(
    asked: Request, request: ResolvedRequest, passes: Sequence[Sequence[Level]]
) -> list[str]:
    """Prompts and settings that have no effect with this guidance."""
    prompts, scale = weighted_prompts(request), request.guidance
    start, end = request.interval
    inside = [start <= signal_share(level) <= end for levels in passes for level in levels[:-1]]
    if not inside:  # no step is drawn
        return []
    if scale == 0 and all(inside) and not request.clip_guidance:
        text = any(text.strip() for text, _ in prompts)
        return ["with guidance 0 the prompt does nothing; 1 follows it alone"] if text else []
    if scale != 1 and any(inside):
        return []
    why = (
        " with guidance 1" if scale == 1 else f": no step begins in the interval {start:g},{end:g}"
    )
    idle = {
        "guidance": scale != 1 and asked.guidance is not None,
        "negative_prompt": bool(request.negative_prompt.strip()) and add_up(prompts),
        "rescale": request.rescale > 0,
        "interval": scale == 1 and any(inside) and (start, end) != (0, 1),
    }
    said: list[str] = [
        FieldMessage(f"{{{field}}} does nothing{{why}}", why=why)
        for field, there in idle.items()
        if there
    ]
    if scale != 1 and not said:
        said.append(FieldMessage("no step has guidance{why}", why=why))
    return said


def picture_warnings(model: Model, asked: Request, request: ResolvedRequest) -> list[str]:
    """A decoder that is not used, too little strength for a step, a size that had to change."""
    warnings = []
    (width, height), own = request.drawn_size, model.drawn_size
    if (
        model.second_stage is not None
        and not draws_any_size(model)
        and width * own[1] != height * own[0]
    ):
        warnings.append(
            f"{model.title} has learned pictures of the shape {model.defaults.width}x"
            f"{model.defaults.height}; what it draws at {request.width}x{request.height} is distorted"
        )
    fixed = model.second_stage is not None and not draws_any_size(model)
    second = request.second_pass
    if fixed and second and (second.strength > KEPT or second.upscaler in hires.LATENT):
        warnings.append(
            FieldMessage(
                "{model} has learned pictures of {width}x{height}, and its second pass distorts them; "
                "use {hires_upscaler} lanczos and a {hires_strength} of at most {most:g}",
                model=model.title,
                width=model.defaults.width,
                height=model.defaults.height,
                most=KEPT,
            )
        )
    if request.decoder == "tiny" and decoder_of(model, "tiny") is model.vae:
        warnings.append(
            FieldMessage(
                "{decoder} tiny does nothing: the autoencoder of {model} is as fast",
                model=model.title,
            )
        )
    if request.start is None:
        return warnings
    (picture, strength), size = request.start, (request.width, request.height)
    if strength == 0 and request.second_pass is None:
        warnings.append(FieldMessage("{strength} 0 returns the picture unchanged"))
    if img2img_steps(request) == 0 < strength:
        warnings.append(
            FieldMessage(
                "{strength} {share:g} of {count} {steps} rounds down to 0: the picture is returned "
                "unchanged; use more steps or a higher strength",
                share=strength,
                count=request.steps,
                steps="step" if request.steps == 1 else "steps",
            )
        )
    open_size = None in (asked.width, asked.height)
    if open_size and not request.masked and draws_any_size(model) and picture.size != size:
        warnings.append(
            f"{request.image} is {picture.width}x{picture.height} and is drawn at "
            f"{size[0]}x{size[1]}: width and height must be multiples of {unit_of(model)}"
        )
    return warnings
