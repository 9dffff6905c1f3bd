"""How often the judge itself is right, of real pictures of the common concepts."""

from __future__ import annotations

import numpy as np

from pellucid.data import to_pixels
from pellucid.data.emoji import Mix, compose
from pellucid.evaluate.evaluation import Evaluation, read_prompts

KINDS = {"plain": Mix(0, 0, 0, 0), "tint": Mix(1, 0, 0, 0), "ground": Mix(0, 1, 0, 0)}


def measure(evaluation: Evaluation, count: int = 200) -> dict[str, float]:
    """Fractions of `count` pictures of each kind, in combinations that were held out."""
    art = evaluation.art
    names = {p.concept for p in read_prompts("common")}
    among = [i for i, c in enumerate(art.concepts) if c.names[0] in names]
    out: dict[str, float] = {}
    for number, (kind, mix) in enumerate(KINDS.items()):
        rng = np.random.default_rng([13, number])
        samples = [compose(art, rng, mix, held=True, among=among) for _ in range(count)]
        pixels = to_pixels([s.pixels for s in samples])
        right = np.equal([s.concepts[0] for s in samples], evaluation.things(pixels))
        out[f"judge, real pictures: concept, {kind}"] = float(right.mean())
        if kind == "plain":
            right = np.equal([s.style for s in samples], evaluation.styles(pixels))
            out["judge, real pictures: style"] = float(right.mean())
    return out
