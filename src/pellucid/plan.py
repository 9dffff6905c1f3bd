"""What a run will do, decided before it begins: pure functions of the model and the request.

The levels of each pass, which steps are the refiner's, the sampler's options, and what the user
should be warned of.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from pellucid import hires, inpaint, samplers
from pellucid.conditioning import long_prompt_warning
from pellucid.model import Model
from pellucid.prompt import unbalanced, unread
from pellucid.request import Request, ResolvedRequest, draws_any_size, unit_of
from pellucid.schedule import MAX_STEPS, Level


def levels_of(model: Model, request: ResolvedRequest) -> list[list[Level]]:
    """The levels of each pass; with strength 0 the first one has a single level, the clean one.

    ValueError for a second pass that would be part of more than `MAX_STEPS` steps.
    """

    def levels(steps: int) -> list[Level]:
        return samplers.levels_for(request.sampler, model.schedule, steps, request.spacing)

    passes = [levels(request.steps)[request.steps - img2img_steps(request) :]]
    second = request.second_pass
    if second is not None:
        whole = hires.levels_for(second.steps, second.strength)
        if whole > MAX_STEPS:
            raise ValueError(
                f"hires_steps {second.steps} at hires_strength {second.strength:g} are the last of "
                f"{whole} steps, and at most {MAX_STEPS} are allowed; use fewer steps or more strength"
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
        raise ValueError(f"the sampler {request.sampler!r} has no eta; ddim has")
    return {"eta": request.eta}


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
            f"the refiner {refiner.name} has other latents than {model.name}; it must have the same "
            "kind of autoencoder"
        )
    if model.schedule != refiner.schedule:
        raise ValueError(
            f"the refiner {refiner.name} has another noise schedule than {model.name}; it must have "
            "the same"
        )


def check_clip_guidance(model: Model, request: ResolvedRequest) -> None:
    """ValueError if CLIP guidance is asked for and the model or the sampler does not have it."""
    if not request.clip_guidance:
        return
    if samplers.get(request.sampler).spec.guided:  # the unguided noise that it puts back undoes it
        raise ValueError(
            f"clip_guidance does not work with the sampler {request.sampler!r}; with ddim it does"
        )
    if model.vision is None:
        raise ValueError(
            f"clip_guidance needs CLIP's picture tower, which {model.name} does not have"
        )
    if model.text.text_projection is None or model.text_2 is not None:
        raise ValueError(
            f"clip_guidance needs a single text tower with a projection, which {model.name} does "
            "not have"
        )


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
        f"{field} does nothing without {needed}"
        for field, needed in asked.idle().items()
        if getattr(asked, field) != getattr(default, field)
    ]
    if refiner is not None:
        splits = [split_at_refiner(refiner, request, levels) for levels in passes]
        if all(first == end for _, (first, end) in splits):
            warnings.append(
                f"refiner_at {request.refiner_at:g} leaves no step to the refiner; use more steps or "
                "a smaller number"
            )
    warnings += picture_warnings(model, asked, request)
    if inpaint.sees_masks(model) and not request.masked:
        warnings.append(
            f"{model.name} is for inpainting; without a mask it draws the whole picture"
        )
    return warnings


def prompt_warnings(model: Model, request: Request, counts: Sequence[int]) -> list[str]:
    """Brackets without a partner, texts that no step uses, and long prompts. counts: the steps of
    each pass."""
    prompts = (*request.prompts, request.negative_prompt)
    warnings = [unbalanced(prompt) for prompt in dict.fromkeys(prompts)]
    warnings += [
        f"no step of {sum(counts)} reads {text!r} of the prompt; see pellucid tokens"
        for prompt in prompts
        for text in unread(prompt, *counts)
    ]
    warnings += [
        long_prompt_warning(model.tokenizer, prompt, *counts) for prompt in dict.fromkeys(prompts)
    ]
    return [warning for warning in warnings if warning is not None]


def picture_warnings(model: Model, asked: Request, request: ResolvedRequest) -> list[str]:
    """Too little strength for a step, and a size that had to change."""
    if request.start is None:
        return []
    warnings = []
    (picture, strength), size = request.start, (request.width, request.height)
    if img2img_steps(request) == 0 < strength:
        warnings.append(
            f"strength {strength:g} of {request.steps} steps is less than one step: nothing is drawn "
            "anew; use more steps or more strength"
        )
    open_size = None in (asked.width, asked.height)
    if open_size and not request.masked and draws_any_size(model) and picture.size != size:
        warnings.append(
            f"{request.image} is {picture.width}x{picture.height} and is drawn at "
            f"{size[0]}x{size[1]}: width and height must be multiples of {unit_of(model)}"
        )
    return warnings
