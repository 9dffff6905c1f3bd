"""Additional losses for the autoencoder: a discriminator and CLIP features.

The adversarial training of latent diffusion (Rombach et al. 2022, arXiv:2112.10752, appendix G).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.clip import VisionTower
from pellucid.train import loop


class PatchDiscriminator(nn.Module):
    """Scores overlapping patches as real or made: (B, 3, H, W) -> (B, 1, about H / 8, W / 8).

    Isola et al. 2017 (arXiv:1611.07004), appendix 6.1.2, with group norm in place of batch norm,
    so that a picture's score does not depend on the others in its batch.
    """

    def __init__(self, in_channels: int = 3, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        blocks: list[nn.Module] = [
            nn.Conv2d(in_channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for i in range(1, layers + 1):
            before, after = width * min(2 ** (i - 1), 8), width * min(2**i, 8)
            blocks += [
                nn.Conv2d(before, after, 4, stride=2 if i < layers else 1, padding=1, bias=False),
                nn.GroupNorm(8, after),
                nn.LeakyReLU(0.2),
            ]
        blocks.append(nn.Conv2d(width * min(2**layers, 8), 1, 4, padding=1))
        self.layers = nn.Sequential(*blocks)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator's scores, scalar (Lim & Ye 2017, arXiv:1705.02894)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """The autoencoder's loss for scores (any shape) of its pictures, scalar."""
    return -fake.mean()


class Critic:
    """A discriminator and its optimizer."""

    def __init__(self, rate: float, device: torch.device) -> None:
        self.network = PatchDiscriminator().to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), rate, (0.5, 0.9))

    def update(self, real: Tensor, made: Tensor) -> None:
        """One step towards telling real pictures (B, 3, H, W) from decoded ones."""
        with loop.autocast(real.device):
            loss = discriminator_loss(self.network(real), self.network(made.detach()))
        loop.descend(self.optimizer, loss, max_norm=None)


class FeatureExtractor:
    """The output of each layer of a vision tower: pixels (B, 3, S, S) -> maps (B, width, h, w)."""

    def __init__(self, tower: VisionTower):
        self.tower = tower.eval().requires_grad_(False)
        self.outputs: list[Tensor] = []
        for layer in tower.vision_model.encoder.layers:
            layer.register_forward_hook(lambda _layer, _inputs, out: self.outputs.append(out))

    def __call__(self, pixels: Tensor) -> Sequence[Tensor]:
        self.outputs = []
        self.tower(pixels)
        side = self.tower.config.image_size // self.tower.config.patch_size
        # Without the class token, which has no place in the picture.
        return [x[:, 1:].transpose(1, 2).unflatten(2, (side, side)) for x in self.outputs]


def feature_loss(features: Callable[[Tensor], Sequence[Tensor]], a: Tensor, b: Tensor) -> Tensor:
    """How different two batches of pictures are to a network, (B,).

    `features` gives maps (B, C, h, w) of several layers; each position's vector is made of unit
    length, and the squared distances are averaged over positions and summed over layers
    (Zhang et al. 2018, arXiv:1801.03924, equation 1, without learned weights).
    """
    distances = [
        (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(dim=1).mean(dim=(1, 2))
        for x, y in zip(features(a), features(b), strict=True)
    ]
    return torch.stack(distances).sum(dim=0)
