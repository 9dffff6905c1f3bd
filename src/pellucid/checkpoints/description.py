"""What can be told of a file without reading its weights; every format fills in the same facts."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.checkpoints.assembly import Part
from pellucid.checkpoints.weights import Stored
from pellucid.model import Defaults
from pellucid.schedule import BETAS, Schedule
from pellucid.tokenizer import Tokenizer
from pellucid.vae import VAE, VAEConfig

UNKNOWN = "not in the file: give --prediction eps or v"
DEPEND = "depend on the prediction"
NO_VAE = "no autoencoder is in it: give --vae FILE"


def model(
    *,
    form: str,
    family: str,
    channels: int,
    parts: Mapping[str, Part],
    prediction: str | None,
    schedule: Schedule,
    defaults: Defaults,
    tokenizer: Tokenizer,
    unused: Sequence[str] = (),
) -> dict[str, Any]:
    """The facts of a model; `prediction` None is one that can't be known, and then the defaults,
    which follow from it, are not told. channels: those of the latents."""
    vae = parts["vae"].module if "vae" in parts else None
    assert vae is None or isinstance(vae, VAE)
    stored = {id(part.weights): part.weights for part in parts.values()}
    return {
        "format": form,
        "family": family,
        "parameters": {name: size(part) for name, part in parts.items()},
        "types": types(*stored.values()),
        "prediction": UNKNOWN if prediction is None else prediction,
        "schedule": schedule_facts(schedule),
        "defaults": DEPEND if prediction is None else dataclasses.asdict(defaults),
        "latents": f"{channels} channels; {NO_VAE}" if vae is None else latents(vae.config),
        "prompt": f"chunks of {tokenizer.context_length - 2} tokens of {tokenizer.vocab_size}",
        "unused keys": list(unused),
    }


def schedule_facts(schedule: Schedule) -> dict[str, Any]:
    """What counts for a schedule of its kind: a flow has no betas, and the others no shift."""
    facts = dataclasses.asdict(schedule)
    idle = ["zero_terminal_snr"] if schedule.name == "flow" else ["shift"]
    if schedule.name not in BETAS:
        idle += ["beta_start", "beta_end"]
    return {name: value for name, value in facts.items() if name not in idle}


def size(part: Part) -> int:
    """How many numbers a network is made of."""
    return sum(parameter.numel() for parameter in part.module.parameters())


def types(*weights: Mapping[str, Stored]) -> dict[str, int]:
    """How many tensors there are of each type, the commonest first."""
    every = (stored.dtype for each in weights for stored in each.values())
    return dict(Counter(str(dtype).removeprefix("torch.") for dtype in every).most_common())


def latents(config: VAEConfig) -> str:
    shift = f", shift {config.shift_factor:g}" if config.shift_factor != 0 else ""
    return f"{shape_of(config)}, scale {config.scaling_factor:g}{shift}"


def shape_of(config: VAEConfig) -> str:
    """The shape of the latents, in words."""
    return f"{config.latent_channels} channels, 1/{config.downsample} of the width and height"
