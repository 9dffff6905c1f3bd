"""One picture of every concept of ``concepts.tsv``: does the judge name it?"""

from __future__ import annotations

from typing import Any

from pellucid.data.emoji import concept_names, with_article
from pellucid.evaluate.evaluation import Evaluation
from pellucid.images.pixels import grid


def measure(evaluation: Evaluation) -> dict[str, Any]:
    """The fraction that is named, what was missed, and a sheet of all pictures."""
    names = concept_names()
    drawn = evaluation.pictures([with_article(name) for name in names])
    seen = evaluation.things(evaluation.stack(drawn))
    missed = [
        f"{name} -> {evaluation.art.concepts[number].names[0]}"
        for name, number in zip(names, seen, strict=True)
        if number != evaluation.numbers[name]
    ]
    return {
        "every concept: named": 1 - len(missed) / len(names),
        "every concept: number": float(len(names)),
        "every concept: missed": missed,
        "vocabulary": grid(drawn, 20),
    }
