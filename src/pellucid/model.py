"""A text-to-image model is a handful of parts; this is the handful, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from pellucid.clip import TextTower, VisionTower
from pellucid.prompt import Emphasis
from pellucid.schedule import Schedule
from pellucid.tiny_vae import TinyVAE
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


@dataclass(frozen=True)
class TextEncoding:
    """How the text towers are read, which differs from family to family.

    layer, final_norm: as `TextTower.forward` takes them, the same for every tower.
    left_out: so many of the last layers that the towers were trained with are not there (1 in
        diffusers' folders of SD2); clip skip counts them, so that it is the same layer everywhere.
    pads: the padding token of each tower's rows; empty: the tokenizer's own.
    pooled: the vector for the whole text is the last tower's, or all towers' beside each other; or,
        as "words", the last tower's beside the sum of the words' own vectors. What CLIP learnt from
        few pictures tells "a blue rabbit" from all else, but rabbit and blue can't be told apart in
        it; in the sum they can.
    zero_empty: an empty negative prompt is all zeros, and is not encoded (SDXL).
    width: with more than 0 the tokens' vectors are filled up with zeros to this width (SD3).
    blank: so many zero tokens follow, in the place of a tower that is not there (SD3's T5).
    emphasis: what becomes of vectors that a prompt gives more or less weight: "original" scales all
        of them so that their mean stays as it was, "no_norm" does not. Where the mean is near zero,
        "original" would scale by chance.
    """

    layer: int = -1
    final_norm: bool = True
    left_out: int = 0
    pads: tuple[int, ...] = ()
    pooled: Literal["last", "all", "words"] = "last"
    zero_empty: bool = False
    width: int = 0
    blank: int = 0
    emphasis: Emphasis = "no_norm"


@dataclass
class Model:
    """All that is needed to turn a prompt into a picture.

    backbone: the network that sees through the noise, called as backbone(x, t, conditioning).
    prediction: what it predicts, one of `diffusion.PREDICTIONS`. text_2: the second text tower of
    SDXL and SD3, whose vectors stand beside the first one's; both share the tokenizer. vision:
    CLIP's other half, for CLIP guidance and for scores; generating does not need it. tiny_vae: a
    quicker decoder of the same latents, for previews and where a request asks for it.
    """

    backbone: nn.Module
    vae: VAE
    text: TextTower
    tokenizer: Tokenizer
    schedule: Schedule
    prediction: str
    name: str
    text_2: TextTower | None = None
    text_encoding: TextEncoding = field(default_factory=TextEncoding)
    vision: VisionTower | None = None
    tiny_vae: TinyVAE | None = None
    defaults: Defaults = field(default_factory=Defaults)
