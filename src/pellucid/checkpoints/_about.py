"""What can be told of a file without reading its weights; every format fills in the same facts."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pellucid.checkpoints import _families
from pellucid.checkpoints._assemble import Part
from pellucid.checkpoints._weights import Stored, is_pickle, open_pickle, open_weights
from pellucid.model import Defaults
from pellucid.schedule import Schedule
from pellucid.tokenizer import Tokenizer
from pellucid.vae import VAE, VAEConfig

UNKNOWN = "not in the file: give --prediction eps or v"
EMBEDDING = "a textual-inversion embedding"  # as `_families.what_is` says it


def model(
    *,
    form: str,
    family: str,
    parts: Mapping[str, Part],
    prediction: str | None,
    schedule: Schedule,
    defaults: Defaults,
    tokenizer: Tokenizer,
    unused: Sequence[str] = (),
) -> dict[str, Any]:
    """The facts of a model; `prediction` None is one that can't be known."""
    vae = parts["vae"].module
    assert isinstance(vae, VAE)
    stored = {id(part.weights): part.weights for part in parts.values()}
    return {
        "format": form,
        "family": family,
        "parameters": {name: size(part) for name, part in parts.items()},
        "types": types(*stored.values()),
        "prediction": UNKNOWN if prediction is None else prediction,
        "schedule": dataclasses.asdict(schedule),
        "defaults": dataclasses.asdict(defaults),
        "latents": latents(vae.config),
        "prompt": f"chunks of {tokenizer.context_length - 2} tokens of {tokenizer.vocab_size}",
        "unused keys": list(unused),
    }


def size(part: Part) -> int:
    """How many numbers a network is made of."""
    return sum(parameter.numel() for parameter in part.module.parameters())


def types(*weights: Mapping[str, Stored]) -> dict[str, int]:
    """How many tensors there are of each type, the commonest first."""
    every = (stored.dtype for each in weights for stored in each.values())
    return dict(Counter(str(dtype).removeprefix("torch.") for dtype in every).most_common())


def latents(config: VAEConfig) -> str:
    return f"{shape_of(config)}, scale {config.scaling_factor:g}"


def shape_of(config: VAEConfig) -> str:
    """The shape of the latents, in words."""
    return f"{config.latent_channels} channels, 1/{config.downsample} of the width and height"


def other(path: Path) -> dict[str, Any] | None:
    """The facts of a file that is known and no model; None for any other. Raises CheckpointError."""
    # These import torch modules that describing a model does without.
    from pellucid.checkpoints import _embedding, _lora_about, _lora_file, ldm

    content = open_pickle(path) if is_pickle(path) else None
    if isinstance(content, dict) and "string_to_param" in content:
        return _embedding_facts(path, _embedding.vectors_in(path)[0])
    weights = open_weights(path)
    if any(key.removeprefix(ldm.NEST).startswith((ldm.UNET, ldm.EMA)) for key in weights):
        return None
    what = _families.what_is(weights)
    if what is None:
        return None
    if what == "a LoRA":
        return {"kind": what} | _lora_about.describe(_lora_file.examine(path))
    if what == EMBEDDING:
        return _embedding_facts(path, _embedding.vectors_in(path)[0])
    facts: dict[str, Any] = {"kind": what}
    if what == "a VAE alone":
        part, unused = ldm.vae_part(path)
        assert isinstance(part.module, VAE)
        facts |= {"parameters": {"vae": size(part)}, "unused keys": unused}
        facts["latents"] = f"{shape_of(part.module.config)}; the file does not say their scale"
    else:
        facts["parameters"] = {"all": sum(math.prod(s.shape) for s in weights.values())}
    return facts | {"types": types(weights), "keys": len(weights)}


def _embedding_facts(path: Path, vectors: Mapping[str, Tensor]) -> dict[str, Any]:
    words = {}
    for key, vector in vectors.items():
        word = (
            path.stem if re.fullmatch(r"\*|emb_params|clip_[lg]|text_encoders_[01]", key) else key
        )
        count = 1 if vector.ndim < 2 else len(vector)
        width = vector.shape[-1] if vector.ndim > 0 else 0
        words[f"{word} ({key})" if word in words else word] = f"{count} of width {width}"
    return {"kind": EMBEDDING, "words": words}
