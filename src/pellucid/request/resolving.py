"""From what was asked to what one model does: its defaults, sizes and words fill a request in."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Any

from pellucid.arrangement import Layout, Region, arrange
from pellucid.colors import NAMES, take_ground
from pellucid.lexicon import LeftOut, expand_emoji, not_learned, stand_ins_in
from pellucid.prompt import names_style, split_and, take_loras
from pellucid.request.request import (
    EXTEND_STRENGTH,
    MASK_STRENGTH,
    STRENGTH,
    Request,
    chosen_seed,
)
from pellucid.request.resolved import ResolvedRequest
from pellucid.request.sizes import drawn_size_of, size_of

if TYPE_CHECKING:
    from pellucid.model import Model

STYLE_GUIDANCE = 1.0
"""Of a small model, which lists what it has learned."""


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
    drawn_size, regions, layout = canvas_of(model, request, drawn_size_of(model, width, height))
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
        "layout": layout,
        "left_out": left_out_of(model, request, layout),
        "open_styles": open_styles_of(model, request),
        "seed": chosen_seed(request),
        "picture": picture,
    }
    if request.style_guidance is None:
        filled["style_guidance"] = default_style_guidance(model)
    if request.image is not None and request.strength is None:
        masked = EXTEND_STRENGTH if any(request.extend) else MASK_STRENGTH
        filled["strength"] = masked if request.masked else STRENGTH
    if request.hires is not None and request.hires_steps is None:
        filled["hires_steps"] = filled["steps"]
    return ResolvedRequest.model_validate(dict(request) | filled)


def default_style_guidance(model: Model) -> float:
    """That of a request which does not say it."""
    return 0.0 if model.lexicon is None else STYLE_GUIDANCE


def open_styles_of(model: Model, request: Request) -> tuple[str, ...]:
    """The styles that a model has learned, for a request that leaves the style open.

    Each seed uses the next one in turn. All styles should be equally likely, but a network that has to
    choose in its first steps, from noise alone, comes to the same style for most seeds. A request has
    no open style if its style comes from a picture, a LoRA, an embedding, a refiner or CLIP guidance,
    or if prompts are added up, or if the prompt names a colour: a colour and a style together make
    things less clear. Styles in the negative prompt are left out.
    """
    if model.lexicon is None:
        return ()
    styles, colors = model.lexicon.styles, NAMES.keys() & model.lexicon.words
    text, _ = take_ground(take_loras(request.prompt)[0])
    have_style = ("image", "mix", "walk", "clip_guidance", "refiner", "loras", "embeddings")
    if (
        any(getattr(request, name) for name in have_style)
        or request.lora_tags
        or len(split_and(text)) > 1
        or names_style(text)
        or not _style_words(text).isdisjoint(colors.union(styles))
    ):
        return ()
    unwanted = _style_words(request.negative_prompt)
    return tuple(style for style in styles if style not in unwanted)


def _style_words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text.lower()))  # "3d" has a digit


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
) -> tuple[tuple[int, int], tuple[Region, ...], Layout | None]:
    """Width and height of the first pass, the regions in it, and their layout. The size is larger than
    `size` where the things of the prompt are drawn one by one."""
    arranged = None
    if model.lexicon is not None and no_arrangement(request) is None:
        arranged = arrange(described(model, request), model.lexicon)
    if arranged is None:
        return size, (), None
    width, height = (side * arranged.side for side in size)
    return (width, height), arranged.regions(width, height), arranged.layout


def described(model: Model, request: Request) -> str:
    """What the prompt says to draw, for a model that lists what it has learned."""
    return replaced(model, request).rest(take_loras(request.prompt)[0])


def replaced(model: Model, request: Request) -> LeftOut:
    """What a model that lists what it has learned reads for other words. A LoRA may know those."""
    if model.lexicon is None:
        return LeftOut()
    if request.loras or request.lora_tags:
        return LeftOut(phrases=True)
    also = [word.lower() for word in model.tokenizer.words]
    found = LeftOut(phrases=True)
    texts = (found.rest(text) for text in (*request.prompts, request.negative_prompt))
    each = (stand_ins_in(take_ground(text)[0], model.lexicon, also) for text in texts)
    return found._replace(instead=tuple(dict(chain.from_iterable(each)).items()))


def left_out_of(model: Model, request: Request, layout: Layout | None) -> LeftOut:
    """What a model which lists what it has learned does not read. A LoRA may know other words; those of
    a painted ground are no matter of the model."""
    found = replaced(model, request)
    if model.lexicon is None or request.loras or request.lora_tags:
        return found
    also = [word.lower() for word in model.tokenizer.words]
    texts = [*request.prompts, request.negative_prompt]
    if layout is not None and layout.ground is not None:
        texts = [take_ground(text)[0] for text in texts]
    rest = [not_learned(found.rest(text), model.lexicon, also) for text in texts]
    return found._replace(words=frozenset().union(*rest))


def no_arrangement(request: Request) -> str | None:
    """The field that keeps the things of a prompt from being drawn one by one; None if none does."""
    if request.arrange is False:
        return "arrange"
    fields = ("image", "mix", "walk", "clip_guidance", "refiner")
    return next((name for name in fields if getattr(request, name)), None)
