"""The prompt as the model reads it: its tokens, and the words that lie near."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.explain.record import Word
from pellucid.model import Model

BATCH = 64
"""Texts that are read at once."""


def words_of(model: Model, prompt: str) -> tuple[Word, ...]:
    """The tokens of a prompt that fit into the row. ValueError if it has none."""
    room = model.tokenizer.context_length - 2
    pieces = list(zip(model.tokenizer.tokens(prompt), model.tokenizer.encode(prompt), strict=True))[
        :room
    ]
    if not pieces:
        raise ValueError(
            f"the prompt {prompt!r} has no tokens, so that there is nothing to see the model read; "
            'at least one word is wanted, such as "a rabbit"'
        )
    return tuple(
        Word(text.strip() or text, number, 1.0, place)
        for place, (text, number) in enumerate(pieces, start=1)  # 0 is the start of the row
    )


@torch.no_grad()
def nearest(model: Model, prompt: str, words: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """`words` and the cosine of each one's text vector and the prompt's, the nearest first.

    The vector is that of the text tower for the whole text, in the space of CLIP's pictures where
    the tower has a projection to it.
    """
    if not words:
        return ()
    texts = [prompt, *words]
    parts = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
    vectors = F.normalize(torch.cat([whole(model, part) for part in parts]).float(), dim=-1)
    cosines = (vectors[1:] @ vectors[0]).tolist()
    return tuple(sorted(zip(words, cosines, strict=True), key=lambda pair: -pair[1]))


def whole(model: Model, texts: Sequence[str]) -> Tensor:
    """One vector for each text, (B, P)."""
    # The tower is causal, so that what follows the end of the text changes nothing.
    ids = model.tokenizer(texts, padded=False)
    out = model.text(ids.to(next(model.text.parameters()).device))
    return out.pooled if out.projected is None else out.projected
