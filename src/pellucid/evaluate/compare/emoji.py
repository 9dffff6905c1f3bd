"""The emoji pictures at 32x32, in which a mode is a thing: rabbit, pizza, rocket.

A sample shows the thing of the training picture whose pixels are nearest, and it is good if it lies
among them, inside the ball around any (as in precision). The features are plain pixels: to a CLIP
that has only ever seen pictures, noise is not far from them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.data.emoji import EmojiArt, core_concepts
from pellucid.evaluate.compare.contest import PatchUNet, Recipe, picture_grid
from pellucid.evaluate.coverage import Coverage, inside, kl_to_uniform, precision_recall
from pellucid.gan import GANConfig, untrained

SIZE = 32
SEEN = 16  # pixels on a side, of the features
NETWORKS = GANConfig(size=SIZE, latent=100, generator_width=36, discriminator_width=36)
UNET = (32, 64)
WHITE = 255


class Emoji:
    """The core concepts, each in every style, on white; half of what is drawn is mirrored."""

    name, title = "emoji", "Emoji at 32x32"
    latent = NETWORKS.latent
    shape: tuple[int, ...] = (3, SIZE, SIZE)
    features = f"the pixels at {SEEN}x{SEEN}"
    good = "it lies among the training pictures: in the ball that reaches one's third neighbour"
    quick = Recipe(
        seen=60_000,
        batch=32,
        gan_rate=5e-4,
        diffusion_rate=2e-3,
        steps=10,
        samples=1000,
        seeds=1,
    )
    full = replace(quick, seen=1_000_000, gan_rate=2e-4, steps=20, samples=5000, seeds=5)

    def __init__(self, art: EmojiArt) -> None:
        """ValueError if the art is smaller than 32 pixels."""
        if art.size < SIZE:
            raise ValueError(f"the art is {art.size} pixels wide; {SIZE} or more are wanted")
        chosen = core_concepts(art) or list(range(len(art.concepts)))
        rgba = torch.from_numpy(art.pixels[chosen]).float().flatten(0, 1)  # (N, h, w, 4)
        alpha = rgba[..., 3:] / 255
        on_white = (rgba[..., :3] * alpha + WHITE * (1 - alpha)).permute(0, 3, 1, 2) / 127.5 - 1
        self.pixels = F.interpolate(on_white, size=SIZE, mode="area")
        self.modes = len(chosen)
        self.concepts = torch.arange(self.modes).repeat_interleave(len(art.styles)).repeat(2)
        self.real = features_of([self.pixels, self.pixels.flip(3)])

    def draw(self, count: int, rng: np.random.Generator) -> Tensor:
        pixels = self.pixels[torch.from_numpy(rng.integers(len(self.pixels), size=count))]
        mirrored = torch.from_numpy(rng.random(count) < 0.5)
        return torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)

    def gan(self, pack: int) -> tuple[nn.Module, nn.Module]:
        return untrained(replace(NETWORKS, pack=pack))

    def denoiser(self) -> nn.Module:
        return PatchUNet(UNET).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def measure(self, batches: Iterable[Tensor]) -> Coverage:
        made = features_of(batches)
        kind = self.concepts[torch.cdist(made, self.real).argmin(dim=1)]
        well = inside(made, self.real)
        counts = torch.bincount(kind, minlength=self.modes)
        return Coverage(
            len(kind),
            int((counts > 0).sum()),
            len(kind[well].unique()),
            kl_to_uniform(counts),
            float(well.float().mean()),
            *precision_recall(self.real, made),
        )

    def look(self, samples: Tensor) -> Image.Image:
        return picture_grid(samples)


def features_of(batches: Iterable[Tensor]) -> Tensor:
    """Pictures (B, 3, 32, 32) -> what is compared, (N, 3 * SEEN^2)."""
    small = [F.interpolate(batch, size=SEEN, mode="area") for batch in batches]
    return torch.cat(small).flatten(1)
