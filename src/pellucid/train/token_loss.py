"""The token loss: the attention of a thing's words is asked to be where that thing is.

A network that learns from captions alone may draw two things although its attention does not
separate them. Where training knows which words name which part of the picture, their attention is
pulled there ("TokenCompose", Wang et al. 2023, arXiv:2312.03626, equation 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pellucid.data import GroundedPhrase
from pellucid.tokenizer import Tokenizer

MOST = 4
"""Things of one picture whose boxes are kept."""


def columns(tokenizer: Tokenizer, caption: str, phrases: Sequence[GroundedPhrase]) -> Tensor:
    """Which tokens of the caption's row name each thing: (MOST, context_length) bool."""
    found = torch.zeros(MOST, tokenizer.context_length, dtype=torch.bool)
    for row, phrase in zip(found, phrases, strict=False):
        first = 1 + len(tokenizer.encode(caption[: phrase.start]))  # the row begins with bos
        last = 1 + len(tokenizer.encode(caption[: phrase.end]))
        row[first : min(last, tokenizer.context_length - 1)] = True
    return found


def boxes(phrases: Sequence[GroundedPhrase]) -> Tensor:
    """Left, top, right, bottom of each thing: (MOST, 4), 0..1; zeros for a missing thing."""
    found = torch.zeros(MOST, 4)
    for row, phrase in zip(found, phrases, strict=False):
        row[:] = torch.tensor(phrase.box)
    return found


def token_loss(maps: Sequence[Tensor], columns: Tensor, boxes: Tensor) -> Tensor:
    """(1 - A_in / A)^2, averaged over the layers and the things; 0 where no thing has a box.

    A is the attention of all positions to a thing's words, summed, and A_in that of the positions
    inside its box.

    maps: of each layer (B, heads, h, w, L); columns (B, n, L) bool; boxes (B, n, 4), 0..1.
    """
    given = columns.any(-1).float()  # (B, n)
    total = boxes.new_zeros(())
    for weights in maps:
        attention = torch.einsum("bhwl,bnl->bnhw", weights.float().mean(1), columns.float())
        height, width = attention.shape[2:]
        y = (torch.arange(height, device=boxes.device) + 0.5) / height
        x = (torch.arange(width, device=boxes.device) + 0.5) / width
        left, top, right, bottom = (edge[..., None] for edge in boxes.unbind(-1))  # (B, n, 1)
        rows, across = (y >= top) & (y < bottom), (x >= left) & (x < right)
        inside = (attention * (rows[..., None] & across[..., None, :])).sum((2, 3))
        share = inside / attention.sum((2, 3)).clamp(min=1e-6)
        total = total + ((1 - share).square() * given).sum()
    return total / (given.sum().clamp(min=1) * max(len(maps), 1))
