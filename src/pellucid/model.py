"""A text-to-image model is a handful of parts; this is the handful, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from pellucid.clip import TextTower, VisionTower
from pellucid.schedule import Schedule
from pellucid.tokenizer import Tokenizer
from pellucid.vae import VAE


@dataclass(frozen=True)
class Defaults:
    """What is used where a request leaves a field open. width and height are pixels."""

    steps: int = 20
    guidance: float = 5.0
    sampler: str = "dpmpp_2m"
    spacing: str = "uniform"
    width: int = 64
    height: int = 64


@dataclass
class Model:
    """All that is needed to turn a prompt into a picture.

    backbone: the network that sees through the noise, called as backbone(x, t, conditioning).
    prediction: what it predicts, one of `diffusion.PREDICTIONS`. vision: CLIP's other half, for
    CLIP guidance and for scores; generating does not need it.
    """

    backbone: nn.Module
    vae: VAE
    text: TextTower
    tokenizer: Tokenizer
    schedule: Schedule
    prediction: str
    name: str
    vision: VisionTower | None = None
    defaults: Defaults = field(default_factory=Defaults)
