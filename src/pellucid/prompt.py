"""From a prompt to what the network is told.

The network gets the vector of every token, for cross-attention, and one vector for the whole, which
joins the time embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.clip import TextTower
from pellucid.diffusion import Conditioning
from pellucid.tokenizer import Tokenizer


def encode(text: TextTower, tokenizer: Tokenizer, prompts: Sequence[str]) -> Conditioning:
    """Tokens (B, context_length, width) and pooled (B, projection) of `prompts`.

    What does not fit in the context is left out; ``tokenizer.cut`` tells what that is.
    """
    out = text(tokenizer(prompts).to(next(text.parameters()).device))
    return Conditioning(out.hidden, out.pooled if out.projected is None else out.projected)
