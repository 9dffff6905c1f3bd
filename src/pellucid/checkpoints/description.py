"""The facts that describe a file, in words; every format reports the same ones."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pellucid.checkpoints.assembly import type_name
from pellucid.checkpoints.weights import Stored
from pellucid.schedule import BETAS, Schedule
from pellucid.tiny_vae import TinyVAEConfig
from pellucid.vae import VAEConfig


def schedule_facts(schedule: Schedule) -> dict[str, Any]:
    """The fields that count for a schedule of this kind: a flow has no betas, the others no shift."""
    facts = dataclasses.asdict(schedule)
    idle = ["zero_terminal_snr"] if schedule.name == "flow" else ["shift"]
    if schedule.name not in BETAS:
        idle += ["beta_start", "beta_end"]
    return {name: value for name, value in facts.items() if name not in idle}


def types(*weights: Mapping[str, Stored]) -> dict[str, int]:
    """How many tensors there are of each type, the commonest first."""
    every = (stored.dtype for each in weights for stored in each.values())
    return dict(Counter(map(type_name, every)).most_common())


def latents(config: VAEConfig) -> str:
    """The shape and the scale of the latents, in words."""
    shift = f", shift {config.shift_factor:g}" if config.shift_factor != 0 else ""
    return f"{shape_of(config)}, scale {config.scaling_factor:g}{shift}"


def shape_of(config: VAEConfig | TinyVAEConfig) -> str:
    """The shape of the latents, in words."""
    return f"{config.latent_channels} channels, 1/{config.downsample} of the width and height"
