"""How far are drawn pictures from real ones, for a network that was not trained here?

A generator cannot have been fitted to this judge, as it can to the project's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pellucid.evaluate import efficientnet
from pellucid.evaluate.evaluation import Evaluation, read_prompts

MISSING = "not measured: it needs pip install 'pellucid[evaluate]'"


def measure(evaluation: Evaluation) -> dict[str, Any]:
    """Distances of pictures of the common prompts, and of other styles of the art, from the art.

    All of the size of the art, scaled to 224 pixels.
    """
    name, name_art = "outside judge: pictures to the art", "outside judge: the art to other styles"
    file = efficientnet.path()
    if file is None:
        return {name: MISSING}
    network = efficientnet.load(file)
    art, prompts = evaluation.art, read_prompts("common")
    numbers = [evaluation.numbers[p.concept] for p in prompts]
    styles = art.on_white(numbers).unflatten(0, (len(prompts), len(art.styles)))
    rows = torch.arange(len(prompts))
    real = efficientnet.features(network, styles[rows, rows % len(art.styles)])
    others = efficientnet.features(network, styles[rows, (rows + 1) % len(art.styles)])
    drawn = efficientnet.features(network, evaluation.pixels([p.text for p in prompts]))
    return {name: frechet_distance(real, drawn), name_art: frechet_distance(real, others)}


def frechet_distance(real: Tensor, drawn: Tensor) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of two sets of features (N, D), (M, D).

    Heusel et al. 2017 (arXiv:1706.08500), equation 6. With fewer pictures than features it is too
    large, so only distances of equal numbers of pictures can be compared.
    """
    real, drawn = real.double(), drawn.double()
    a, b = real - real.mean(0), drawn - drawn.mean(0)
    a, b = a / max(len(a) - 1, 1) ** 0.5, b / max(len(b) - 1, 1) ** 0.5
    # With C = a^T a and C' = b^T b, tr (C C')^(1/2) is the sum of the singular values of a b^T.
    cross = torch.linalg.svdvals(a @ b.T).sum()
    means = (real.mean(0) - drawn.mean(0)).square().sum()
    return float(means + a.square().sum() + b.square().sum() - 2 * cross)
