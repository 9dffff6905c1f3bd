"""How different are the pictures that one prompt gives with other seeds?"""

from __future__ import annotations

import torch

from pellucid.evaluate.evaluation import Evaluation, read_prompts

SEEDS = 4
ENOUGH = 0.5


def measure(evaluation: Evaluation, count: int = 40) -> dict[str, float]:
    """The mean distance between seeds, in that between the styles of the art, of `count` prompts.

    Distances are root mean square over pixels. The share is of prompts with at least `ENOUGH`.
    """
    art, prompts = evaluation.art, read_prompts("common")[:count]
    texts = [p.text for p in prompts for _ in range(SEEDS)]
    drawn = evaluation.pixels(texts, seed=500).flatten(1).view(len(prompts), SEEDS, -1)
    numbers = [evaluation.numbers[p.concept] for p in prompts]
    real = art.on_white(numbers).flatten(1).view(len(prompts), len(art.styles), -1)
    ratios = torch.stack(
        [torch.pdist(d).mean() / torch.pdist(r).mean() for d, r in zip(drawn, real, strict=True)]
    )
    return {
        "variety: seeds / styles": float(ratios.mean()),
        f"variety: prompts with at least {ENOUGH}": float((ratios >= ENOUGH).float().mean()),
    }
