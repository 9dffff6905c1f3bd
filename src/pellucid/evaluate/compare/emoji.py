"""The emoji pictures at 32x32, in which a mode is a thing: rabbit, pizza, rocket.

A sample shows the thing of the training picture whose pixels are nearest, and it is good if it lies
among them, inside the ball around any (as in precision). The features are plain pixels: for a CLIP
that was trained on pictures only, noise is not far from them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.data.emoji import EmojiArt, core_concepts
from pellucid.evaluate.compare.coverage import Coverage, apart, coverage, inside
from pellucid.evaluate.compare.pictures import FULL, QUICK, PictureTask
from pellucid.gan import GANConfig

SIZE = 32
SIDE = 16  # pixels on a side, of the features


class EmojiTask(PictureTask):
    """The core concepts, each in every style, on white; half of what is drawn is mirrored."""

    name, title = "emoji", "Emoji at 32x32"
    networks = GANConfig(size=SIZE, latent=100, generator_width=36, discriminator_width=36)
    features = f"the pixels at {SIDE}x{SIDE}"
    good = "it lies among the training pictures: in the ball that reaches one's third neighbour"
    quick, full = QUICK, FULL

    def __init__(self, art: EmojiArt) -> None:
        """ValueError if the art is smaller than 32 pixels."""
        if art.size < SIZE:
            raise ValueError(f"the art must be at least {SIZE} pixels wide, got {art.size}")
        chosen = core_concepts(art) or list(range(len(art.concepts)))
        self.pixels = F.interpolate(art.on_white(chosen), size=SIZE, mode="area")
        self.modes = len(chosen)
        self.concepts = torch.arange(self.modes).repeat_interleave(len(art.styles)).repeat(2)
        self.real = features_of([self.pixels, self.pixels.flip(3)])

    def draw(self, count: int, rng: np.random.Generator) -> Tensor:
        pixels = self.pixels[torch.from_numpy(rng.integers(len(self.pixels), size=count))]
        mirrored = torch.from_numpy(rng.random(count) < 0.5)
        return torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)

    def measure(self, batches: Iterable[Tensor]) -> Coverage:
        made = features_of(batches)
        kind = self.concepts[torch.cdist(made, self.real).argmin(dim=1)]
        well = inside(made, self.real)
        return coverage(kind, well, self.modes, self.real, made, apart(self.real, made))


def features_of(batches: Iterable[Tensor]) -> Tensor:
    """Pictures (B, 3, 32, 32) -> what is compared, (N, 3 * SIDE^2)."""
    small = [F.interpolate(batch, size=SIDE, mode="area") for batch in batches]
    return torch.cat(small).flatten(1)
