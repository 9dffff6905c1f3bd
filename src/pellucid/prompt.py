"""From a prompt to what the network is told.

The network gets the vector of every token, for cross-attention, and one vector for the whole, which
joins the time embedding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from pellucid.clip import TextTower
from pellucid.diffusion import Conditioning
from pellucid.tokenizer import Tokenizer

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"


# ---------------------------------------------------------------- <lora:name:weight>


class Lora(NamedTuple):
    """A LoRA that a prompt asks for: how much it counts in the network, and in the text towers."""

    name: str
    weight: float
    text_weight: float


_LORA = re.compile(r"<(?:lora|lyco):([^<>]*)>")


def take_loras(text: str) -> tuple[str, list[Lora]]:
    """`text` without its LoRAs, and these, in their order.

    <lora:name> counts 1, <lora:name:0.8> counts 0.8. <lora:name:0.5:0.8> is 0.5 in the text towers
    and 0.8 in the network, which can be written <lora:name:te=0.5:unet=0.8> too.
    Raises ValueError for a LoRA without a name, and for a weight that is no finite number.
    """
    loras = [_lora(match[0], match[1].split(":")) for match in _LORA.finditer(text)]
    return _LORA.sub("", text), loras


def _lora(tag: str, fields: list[str]) -> Lora:
    name, *values = (field.strip() for field in fields)
    if not name:
        raise ValueError(f"{tag} names no LoRA; <lora:name:weight> is wanted")
    places = ["te", "unet"]
    found: dict[str, float] = {}
    for value in values:
        place, named, number = value.rpartition("=")
        if not named:
            place = next((p for p in places if p not in found), "")
        known = place in places and place not in found
        weight = float(number) if re.fullmatch(NUMBER, number.strip(), re.I) else math.nan
        if not known or not math.isfinite(weight):
            raise ValueError(
                f"{tag}: {value!r} is not understood; <lora:name:weight> is wanted, or "
                "<lora:name:text weight:network weight>, with finite numbers"
            )
        found[place] = weight
    text_weight = found.get("te", 1.0)
    return Lora(name, found.get("unet", text_weight), text_weight)


def encode(text: TextTower, tokenizer: Tokenizer, prompts: Sequence[str]) -> Conditioning:
    """Tokens (B, context_length, width) and pooled (B, projection) of `prompts`.

    What does not fit in the context is left out; ``tokenizer.cut`` tells what that is.
    """
    out = text(tokenizer(prompts).to(next(text.parameters()).device))
    return Conditioning(out.hidden, out.pooled if out.projected is None else out.projected)
