"""A text-to-image model: its parts and its settings, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from pellucid.cascade import SuperResolution
from pellucid.clip import TextTower, VisionTower
from pellucid.folders import embedded
from pellucid.lexicon import Lexicon
from pellucid.prompt import Emphasis, WalkBy
from pellucid.schedule import Schedule
from pellucid.tiny_vae import TinyVAE
from pellucid.tokenizer import Tokenizer
from pellucid.vae import VAE

if TYPE_CHECKING:
    from pellucid import upscale


@dataclass(frozen=True)
class Defaults:
    """What is used for fields that a request leaves open. width and height are pixels of the
    result, after the second stage of a model that has one."""

    steps: int = 20
    guidance: float = 5.0
    sampler: str = "dpmpp_2m"
    spacing: str = "uniform"
    width: int = 64
    height: int = 64
    walk_by: WalkBy = "embeddings"


@dataclass(frozen=True)
class TextEncoding:
    """How prompts are encoded by the text towers, which differs from family to family.

    layer, final_norm: as `TextTower.forward` takes them, the same for every tower.
    left_out: how many of the last layers of the trained towers are missing (1 in diffusers' folders
        of SD2); clip skip counts them, so that it is the same layer everywhere.
    pads: the padding token of each tower's rows; empty: the tokenizer's own.
    pooled: the vector for the whole text is the last tower's, or the concatenation of all towers'; or,
        with "words", the last tower's and the sum of the words' own vectors. A CLIP trained on few
        pictures separates "a blue rabbit" from all other prompts, but its vector does not show rabbit
        and blue separately; the sum does.
    zero_empty: an empty negative prompt becomes zeros and is not encoded (SDXL).
    width: if above 0, the tokens' vectors are padded with zeros to this width (SD3).
    blank: how many zero tokens follow, in place of a tower that is not there (SD3's T5).
    emphasis: what happens to vectors that a prompt gives more or less weight: "original" scales all
        of them back to their old mean, "no_norm" does not. Where the mean is near zero, "original"
        would scale arbitrarily.
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


@dataclass(frozen=True)
class LatentSpace:
    """How to show latents without the full autoencoder, as far as it is known for a published one.

    colors: red, green and blue in [-1, 1] of each channel of the scaled latents, fitted to decoded
    photographs; they are those of InvokeAI (github.com/invoke-ai/InvokeAI,
    invokeai/app/util/step_callback.py). tiny_vae: the published name of the tiny autoencoder.
    """

    colors: tuple[tuple[float, float, float], ...] | None = None
    tiny_vae: str | None = None


@dataclass
class Model:
    """Everything that turns a prompt into a picture.

    backbone: the network that predicts the noise, called as backbone(x, t, conditioning).
    prediction: what it predicts, one of `diffusion.PREDICTIONS`. text_2: the second text tower of
    SDXL and SD3, whose vectors are concatenated with the first one's; both share the tokenizer.
    vision: CLIP's other half, for CLIP guidance and for scores; generating does not need it.
    tiny_vae: a faster decoder of the same latents, for previews and where a request asks for it.
    second_stage: that of a cascade, which makes the pictures of the first one larger.
    upscaler: what enlarges a picture before its second pass, where a request names a file for that.
    lexicon: the words that it has learned; None: that is not known.
    latents: what is known of the latents of its autoencoder.
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
    second_stage: SuperResolution | None = None
    upscaler: upscale.Upscaler | None = None
    lexicon: Lexicon | None = None
    defaults: Defaults = field(default_factory=Defaults)
    latents: LatentSpace = field(default_factory=LatentSpace)

    @property
    def title(self) -> str:
        """What messages call it."""
        return "the included model" if self.name == embedded().stem else self.name

    @property
    def towers(self) -> dict[str, TextTower]:
        """The text towers that it has, under the names of their fields."""
        return {"text": self.text} | ({} if self.text_2 is None else {"text_2": self.text_2})

    @property
    def config(self) -> Any:
        """The config of the backbone; None if that has none."""
        return getattr(self.backbone, "config", None)

    @property
    def drawn_size(self) -> tuple[int, int]:
        """Width and height in pixels that the backbone draws by default, before any second stage."""
        factor = 1 if self.second_stage is None else self.second_stage.config.factor
        return self.defaults.width // factor, self.defaults.height // factor
