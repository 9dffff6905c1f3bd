"""Does the picture show the thing that the prompt names?"""

from __future__ import annotations

import time
from typing import Any

from PIL import Image

from pellucid.evaluate.evaluation import Evaluation, read_prompts
from pellucid.images.pixels import grid


def measure(evaluation: Evaluation) -> dict[str, Any]:
    """The common concepts, with and without guidance, and everyday words for others."""
    began = time.monotonic()
    rate, drawn, misses = recognised(evaluation, "common")
    seconds = round(time.monotonic() - began, 1)
    unguided, *_ = recognised(evaluation, "common", guidance=1.0)
    everyday, _, missed_words = recognised(evaluation, "everyday")
    return {
        "common concepts named": rate,
        "common concepts missed": misses,
        "seconds for 100 pictures": seconds,
        "common concepts named, guidance 1": unguided,
        "everyday words named": everyday,
        "everyday words missed": missed_words,
        "sheet": grid(drawn, 10),
    }


def recognised(
    evaluation: Evaluation, kind: str, **fields: Any
) -> tuple[float, list[Image.Image], list[str]]:
    """Fraction of a set's prompts whose picture the judge names right; the pictures; the misses."""
    prompts = read_prompts(kind)
    drawn = evaluation.pictures([p.text for p in prompts], **fields)
    named = evaluation.things(evaluation.stack(drawn))
    misses = [
        f"{p.text} -> {evaluation.art.concepts[number].names[0]}"
        for p, number in zip(prompts, named, strict=True)
        if number != evaluation.numbers[p.concept]
    ]
    return 1 - len(misses) / len(prompts), drawn, misses
