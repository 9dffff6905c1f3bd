"""Drawing a little, so that a backend can see what the layers of a network get."""

from __future__ import annotations

from pellucid.model import Model
from pellucid.pipeline import generate
from pellucid.progress import each
from pellucid.request import Request
from pellucid.request.sizes import unit_of

PROMPTS = (
    "a photo of a red bicycle in front of a house by the sea, under a cloudy sky",
    "a frog",
    "two blue birds on a yellow car, at night",
    "portrait of an old woman with a hat, oil painting",
)
STEPS = 6
SMALLER = 256
"""Pixels of a side from which on half of it is enough: the numbers in a network hardly depend on the
size, its time does."""


def rehearse(model: Model) -> None:
    """Draw a few pictures with the model's own settings, in few steps, and throw them away."""
    unit = unit_of(model)
    sides = [
        max(unit, side // 2 // unit * unit) if side > SMALLER else side
        for side in (model.defaults.width, model.defaults.height)
    ]
    steps = min(STEPS, model.defaults.steps)
    for seed, prompt in enumerate(each("measuring what the layers get", PROMPTS)):
        request = Request(prompt=prompt, width=sides[0], height=sides[1], steps=steps, seed=seed)
        for _ in generate(model, request):
            pass
