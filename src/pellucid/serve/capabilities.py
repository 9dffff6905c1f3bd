"""What a model can do, as data: its fields, their limits and choices, and its own defaults.

Everything is derived from the declarations of `Request` and from the model, so a client needs no
table of its own.
"""

from __future__ import annotations

import inspect
from typing import Any

from pellucid import samplers
from pellucid.inpaint import sees_masks
from pellucid.model import Model
from pellucid.plan import missing_for_clip_guidance
from pellucid.request import Request
from pellucid.request.fields import choices_of, declared
from pellucid.request.resolving import default_style_guidance
from pellucid.request.sizes import draws_any_size, unit_of
from pellucid.serve.configuration import Configuration


def capabilities(model: Model, limits: Configuration) -> dict[str, Any]:
    """What clients need to know of a model, as JSON values."""
    d, schema = model.defaults, Request.model_json_schema()["properties"]
    return {
        "name": model.name,
        "prediction": model.prediction,
        "schedule": model.schedule.name,
        "defaults": vars(d),
        "size": {
            "unit": unit_of(model),
            "any": draws_any_size(model),
            "pixel_limit": limits.pixel_limit,
        },
        "prompt": {
            "chunk": model.tokenizer.context_length - 2,
            "vocabulary": model.tokenizer.vocab_size,
        },
        "words": None if model.lexicon is None else [e.names[0] for e in model.lexicon.entries],
        "inpainting_model": sees_masks(model),
        "fields": [
            _field(name, schema[name], model, limits)
            for name in Request.model_fields
            if _has(model, name)
        ],
        "samplers": [_sampler(name) for name in samplers.names()],
    }


def _has(model: Model, name: str) -> bool:
    """Whether a field can do something with this model."""
    if name == "clip_guidance":
        return missing_for_clip_guidance(model) is None
    if name == "decoder":
        return model.tiny_vae is not None
    return True


def _field(
    name: str, schema: dict[str, Any], model: Model, limits: Configuration
) -> dict[str, Any]:
    """A field of a request: what it does, what it may be, and what it is by default."""
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    kind, choices = kinds[0], choices_of(Request, name)
    defaults = vars(model.defaults) | {"style_guidance": default_style_guidance(model)}
    facts = {
        "name": name,
        "help": schema["description"],
        "group": declared(Request, name)["group"],
        "needs": declared(Request, name)["needs"],
        "type": kind.get("type"),
        "default": defaults.get(name, schema.get("default")),
        "minimum": kind.get("minimum", kind.get("exclusiveMinimum")),
        "maximum": kind.get("maximum", kind.get("exclusiveMaximum")),
        "choices": None if choices is None else choices(),
    }
    most = {
        "steps": limits.step_limit,
        "hires_steps": limits.step_limit,
        "count": limits.count_limit,
    }
    if name in most:
        facts["maximum"] = most[name]
    return facts


def _sampler(name: str) -> dict[str, Any]:
    """A sampler, with one sentence on what it does."""
    sampler = samplers.get(name)
    return {
        "name": name,
        "aliases": list(sampler.spec.aliases),
        "help": sampler.doc.split("\n\n")[0].replace("\n", " "),
        "order": sampler.spec.order,
        "options": [n for n in inspect.signature(sampler.sample).parameters if n == "eta"],
    }
