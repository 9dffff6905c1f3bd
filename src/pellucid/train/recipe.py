"""What a training loop does not decide: the networks of a model, and how its pictures are mixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pellucid.backbones.unet import UNetConfig
from pellucid.cascade import SuperResolutionConfig
from pellucid.clip import TextConfig, VisionConfig
from pellucid.model import Defaults
from pellucid.vae import VAEConfig


@dataclass(frozen=True)
class Recipe:
    """The design of a small model. `pellucid.recipes` holds one in each file.

    vae: the autoencoder; its scale and shift are measured. text, vision: the towers of CLIP; the
    vocabulary and the size of the pictures are filled in. unet: widths of the levels -> the
    network; the sizes of latents and text are filled in. It raises ValueError for widths that do
    not work. mixes: name of a loop -> how often its source draws which kind of picture, for a
    source that composes its pictures (`data.emoji.Mix`). defaults: how the finished model is run.
    upscaler: the super-resolution stage.
    """

    vae: VAEConfig
    text: TextConfig
    vision: VisionConfig
    unet: Callable[[tuple[int, ...]], UNetConfig]
    mixes: Mapping[str, Mapping[str, float]]
    defaults: Defaults
    upscaler: SuperResolutionConfig = field(default_factory=SuperResolutionConfig)

    @property
    def multiple(self) -> int:
        """What the size of the pictures must be a multiple of: the U-Net halves the latents."""
        return 2 * self.vae.downsample
