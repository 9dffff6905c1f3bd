"""Texts as vectors of one direction each, which a cosine compares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.model import Model
from pellucid.progress import each

BATCH = 64
"""Texts that the tower encodes at once."""


@torch.no_grad()
def text_vectors(model: Model, texts: Sequence[str]) -> Tensor:
    """(N, D), each of length 1, float32 on the CPU. What exceeds the context is left out.

    In the space of CLIP's pictures where the text tower has a projection to it, else its pooled
    output.
    """
    config = model.text.config
    parts = [torch.empty(0, config.projection or config.width)]
    device = next(model.text.parameters()).device
    for start in each("encoding the words", range(0, len(texts), BATCH)):
        # Without padding: the tower is causal, so what follows the end changes nothing.
        out = model.text(model.tokenizer(texts[start : start + BATCH], padded=False).to(device))
        parts.append(unit_length(out.pooled if out.projected is None else out.projected))
    return torch.cat(parts)


def unit_length(vectors: Tensor) -> Tensor:
    """The same directions with length 1, float32 on the CPU."""
    return F.normalize(vectors.float().cpu(), dim=-1)
