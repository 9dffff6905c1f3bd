"""Does CLIP find the picture of a caption?"""

from __future__ import annotations

import numpy as np
import torch

from pellucid.clip import CLIP, retrieve
from pellucid.data import to_pixels
from pellucid.data.emoji import Mix, compose
from pellucid.evaluate.evaluation import Evaluation

MIX = Mix(tinted=0.4, on_color=0.3, pair=0.3)


def measure(evaluation: Evaluation, trials: int = 5) -> dict[str, float]:
    """Fraction of held-out captions whose picture is among the first 5 of 100."""
    model, art = evaluation.model, evaluation.art
    assert model.vision is not None
    clip = CLIP(model.text, model.vision).eval()
    hits = []
    for trial in range(trials):
        rng = np.random.default_rng([12, trial])
        chosen = rng.permutation(len(art.concepts))[:100]
        samples = [compose(art, rng, MIX, concept=int(c), held=True) for c in chosen]
        ids = model.tokenizer([s.caption for s in samples])
        ranks = retrieve(clip, to_pixels([s.pixels for s in samples]), ids).ranks
        hits.append((ranks < 5).float().mean())
    figure = float(torch.stack(hits).mean())
    return {"CLIP: right picture in the first 5 of 100, held-out captions": figure}
