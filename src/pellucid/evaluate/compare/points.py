"""Two dimensions: Gaussians on a ring or a grid, where everything is visible at a glance.

The data sets of Metz et al. 2017 (Unrolled GAN) in the numbers of VEEGAN (Srivastava et al. 2017,
arXiv:1705.07761, section 5.1): 8 Gaussians of deviation 0.01 on a circle of radius 1; 25 of 0.05
at distances of 2. Both are scaled to a mean square of about 1 for the networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.diffusion import Conditioning
from pellucid.evaluate.compare.coverage import Coverage, apart, kl_to_uniform, precision_recall
from pellucid.evaluate.compare.task import Setup
from pellucid.gan import packed
from pellucid.html.plots import Plot, Series
from pellucid.nn import sinusoid

WITHIN = 3.0
"""A sample is good within this many deviations of the nearest centre (VEEGAN, section 5.1); only good
ones are counted."""
COMPARED = 1000  # points for precision and recall
SHOWN = 1000
LATENT = 2
WAVES = 6  # of each coordinate, from 1 to 2^5 radians a unit
INPUTS = 2 + 2 * 2 * WAVES
TIME = 16


def ring() -> Points:
    """8 Gaussians on a circle."""
    angles = torch.arange(8) * (2 * math.pi / 8)
    return Points(
        "ring", "A ring of 8 Gaussians", torch.stack([angles.cos(), angles.sin()], 1), 0.01
    )


def grid() -> Points:
    """25 Gaussians on a grid."""
    side = torch.arange(-4.0, 5.0, 2.0)
    return Points("grid", "25 Gaussians on a grid", torch.cartesian_prod(side, side), 0.05)


class Points:
    """A mixture of equal round Gaussians: `centres` (K, 2) and their deviation, scaled to fit."""

    latent = LATENT
    shape: tuple[int, ...] = (2,)
    features = "the coordinates"
    published = ""
    good = f"within {WITHIN:g} deviations of a centre"

    def __init__(self, name: str, title: str, centres: Tensor, deviation: float) -> None:
        scale = centres.square().mean().sqrt()
        self.name, self.title = name, title
        self.centres, self.deviation, self.modes = (
            centres / scale,
            float(deviation / scale),
            len(centres),
        )
        self.quick = Setup(
            seen=500_000,
            batch=256,
            gan_rate=1e-3,
            diffusion_rate=3e-3,
            steps=50,
            samples=2500,
            seeds=5,
            times="uniform",  # sharp borders are learned where there is little noise
            half=False,  # bf16 has three digits, and the spread is in the second
        )
        self.full = replace(self.quick, seen=5_000_000)

    def draw(self, count: int, rng: np.random.Generator) -> Tensor:
        chosen = torch.from_numpy(rng.integers(self.modes, size=count))
        spread = torch.from_numpy(rng.standard_normal((count, 2))).float()
        return self.centres[chosen] + self.deviation * spread

    def gan(self, pack: int) -> tuple[nn.Module, nn.Module]:
        return PointGenerator(), PointDiscriminator(pack)

    def denoiser(self) -> nn.Module:
        return PointDenoiser()

    def measure(self, batches: Iterable[Tensor]) -> Coverage:
        points = torch.cat(list(batches))
        distance, nearest = torch.cdist(points, self.centres).min(dim=1)
        good = distance <= WITHIN * self.deviation
        counts = torch.bincount(nearest[good], minlength=self.modes)
        real = self.draw(COMPARED, np.random.default_rng([1, self.modes]))
        return Coverage(
            len(points),
            int((counts > 0).sum()),
            int((counts > 0).sum()),
            kl_to_uniform(counts),
            float(good.float().mean()),
            *precision_recall(real, points[:COMPARED]),
            apart(real, points),
        )

    def preview(self, samples: Tensor, label: str) -> Image.Image:
        some = samples[:SHOWN]
        plot = Plot(
            "",
            [
                Series(label, some[:, 0].tolist(), some[:, 1].tolist(), "dots"),
                Series("centres", self.centres[:, 0].tolist(), self.centres[:, 1].tolist(), "dots"),
            ],
            x_range=(-2.2, 2.2),
            y_range=(-2.2, 2.2),
            width=360,
            height=280,
        )
        return plot.image(1)


def waves(points: Tensor) -> Tensor:
    """Coordinates (B, 2) and their sines and cosines: (B, INPUTS).

    With them a small network can draw sharp borders (Tancik et al. 2020, arXiv:2006.10739, eq. 4);
    the discriminator and the denoiser both get them.
    """
    angles = points[:, :, None] * 2.0 ** torch.arange(WAVES)  # (B, 2, WAVES)
    return torch.cat([points, angles.sin().flatten(1), angles.cos().flatten(1)], dim=1)


class PointGenerator(nn.Module):
    """z (B, 2) -> points (B, 2); two hidden layers of 128 (VEEGAN's)."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(LATENT, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 2),
        )

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.layers(z)


class PointDiscriminator(nn.Module):
    """Points (B, 2) -> scores (B / pack,)."""

    def __init__(self, pack: int, width: int = 128) -> None:
        super().__init__()
        self.pack = pack
        self.layers = nn.Sequential(
            nn.Linear(pack * INPUTS, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, 1),
        )

    def forward(self, points: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.layers(packed(waves(points), self.pack))[:, 0]


class PointDenoiser(nn.Module):
    """A noisy point (B, 2) and t (B,) -> what was predicted, (B, 2)."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.first = nn.Linear(INPUTS + TIME, width)
        self.second, self.third = nn.Linear(width, width), nn.Linear(width, width)
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        h = F.silu(self.first(torch.cat([waves(x), sinusoid(t, TIME)], dim=1)))
        h = h + F.silu(self.second(h))
        return self.last(h + F.silu(self.third(h)))
