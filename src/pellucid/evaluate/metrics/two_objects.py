"""Two things in one picture: is each of them in its half?"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from pellucid.evaluate.evaluation import Evaluation, read_prompts


def measure(evaluation: Evaluation, count: int = 40) -> dict[str, float]:
    """Fraction of `count` prompts of two things in which the judge names both."""
    prompts = read_prompts("common")
    rng = np.random.default_rng(3)
    both = []
    for i in range(count):
        a, b = rng.choice(len(prompts), 2, replace=False)
        word = ("and", "above")[i % 2]
        drawn = evaluation.pixels([f"{prompts[a].text} {word} {prompts[b].text}"], seed=3000 + i)
        h = evaluation.art.size // 2
        middle = slice(h // 2, h // 2 + h)
        if word == "and":
            parts = (drawn[:, :, middle, :h], drawn[:, :, middle, h:])
        else:
            parts = (drawn[:, :, :h, middle], drawn[:, :, h:, middle])
        large = F.interpolate(torch.cat(parts), size=evaluation.art.size, mode="bilinear")
        asked = {evaluation.numbers[prompts[i].concept] for i in (a, b)}
        both.append(set(evaluation.things(large)) == asked)
    return {"two objects both named": float(np.mean(both))}
