"""Stacked MNIST: three handwritten digits in one picture, 1000 kinds that can be counted.

Metz et al. 2017 (arXiv:1611.02163, section 3.3.1). A picture's kind is what a classifier of digits
says of its three channels, as in all published figures, however unlike a digit they are; the good
ones, which it recognises as it does real digits, are counted separately.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pellucid.data import mnist
from pellucid.evaluate.compare.coverage import Coverage, apart, coverage
from pellucid.evaluate.compare.pictures import FULL, QUICK, PictureTask
from pellucid.evaluate.digits import DigitClassifier
from pellucid.gan import GANConfig

COMPARED = 1000  # pictures for precision and recall
UNSURE = 0.05  # of real digits the classifier is less sure than of a good one
FAR = 0.01  # of real digits are farther from those to learn from than a good one


class StackedMnist(PictureTask):
    """Learns from nine digits in ten; the rest show how sure the classifier is of real ones."""

    name, title = "stacked-mnist", "Stacked MNIST: three digits, 1000 kinds"
    modes = mnist.MODES
    # As deep as the published ones. With two layers each, 28 to 7 pixels, a GAN learns sooner and
    # keeps all modes; these chase each other for long, over one picture and then a few.
    networks = GANConfig(
        size=mnist.SIZE, latent=100, generator_width=16, discriminator_width=16, levels=4, kernel=5
    )
    features = "the classifier's features of the three channels"
    good = (
        "each of its digits is recognised as surely as 19 of 20 real ones, and no farther from one "
        "that was learnt than 99 of 100"
    )
    published = (
        "Published for 26,000 samples, after far longer training: DCGAN 99 modes, KL 3.40; ALI 16, "
        "5.40; Unrolled GAN 48.7, 4.32; VEEGAN 150, 2.95; PacGAN with packs of 2 1000, 0.06 (Lin et "
        "al. 2018, arXiv:1712.04086, table 2)."
    )
    quick = replace(QUICK, seen=100_000, gan_rate=2e-4, samples=2600)
    full = replace(FULL, samples=26_000)

    def __init__(self, digits: mnist.Digits, classifier: DigitClassifier) -> None:
        self.digits, self.held = digits.split(False), digits.split(True)
        self.classifier = classifier
        _, sure, features = self.classify(self.held.pixels[:, None])
        self.learned = self.classify(self.digits.pixels[:, None])[2]
        self.least = float(sure.quantile(UNSURE))
        self.most = float(self.distance(features).quantile(1 - FAR))

    @torch.no_grad()
    def classify(self, channels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The digit, how sure that is (0..1), and the features of (N, 1, 28, 28): (N,) (N,) (N, D)."""
        features = self.classifier.features(channels)
        sure, digit = self.classifier.head(features).softmax(dim=1).max(dim=1)
        return digit, sure, features

    def distance(self, features: Tensor) -> Tensor:
        """To the nearest of the digits to learn from: (N, D) -> (N,)."""
        return torch.cdist(features, self.learned).amin(dim=1)

    def draw(self, count: int, rng: np.random.Generator) -> Tensor:
        return mnist.stacked(self.digits, count, rng)

    def measure(self, batches: Iterable[Tensor]) -> Coverage:
        kinds, good, features = [], [], []
        pixels: list[Tensor] = []
        for batch in batches:
            digit, sure, of_digits = self.classify(batch.flatten(0, 1)[:, None])
            kinds.append((digit.view(-1, 3) * torch.tensor([100, 10, 1])).sum(dim=1))
            # It may be sure of what is no digit at all; but that is far from them in its features.
            fine = (sure >= self.least) & (self.distance(of_digits) <= self.most)
            good.append(fine.view(-1, 3).all(dim=1))
            features.append(of_digits.view(len(batch), -1))
            pixels.extend(batch[: COMPARED - len(pixels)].flatten(1))
        real = mnist.stacked(self.digits, COMPARED, np.random.default_rng(1))
        real_features = self.classify(real.flatten(0, 1)[:, None])[2].view(COMPARED, -1)
        made_features = torch.cat(features)[:COMPARED]
        distance = apart(real.flatten(1), torch.stack(pixels))
        kind, well = torch.cat(kinds), torch.cat(good)
        return coverage(kind, well, self.modes, real_features, made_features, distance)
