"""Is a picture more than a copy of one from training?"""

from __future__ import annotations

import torch

from pellucid.evaluate.evaluation import Evaluation, read_prompts


def measure(evaluation: Evaluation, count: int = 40) -> dict[str, float]:
    """Distances of `count` pictures (root mean square over pixels, range 0..2)."""
    art, prompts = evaluation.art, read_prompts("common")[:count]
    plain = art.on_white()  # (N, 3, size, size)
    training = torch.cat([plain, plain.flip(3)]).flatten(1)
    texts = [p.text for p in prompts]
    first = evaluation.pixels(texts).flatten(1)
    width = training.shape[1] ** 0.5
    nearest = torch.cdist(first, training).amin(1) / width
    by_concept = plain.flatten(1).view(len(art.concepts), len(art.styles), -1)
    own = by_concept[[evaluation.numbers[p.concept] for p in prompts]]
    styles = torch.stack([torch.pdist(one).mean() for one in own]) / width
    return {
        "distance to the nearest training picture, median": float(nearest.median()),
        "distance between styles of a concept in training, mean": float(styles.mean()),
    }
