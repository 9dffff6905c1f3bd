"""Stacked MNIST: three handwritten digits in one picture, 1000 kinds that can be counted.

Metz et al. 2017 (arXiv:1611.02163, section 3.3.1). A picture's kind is what a classifier of digits
says of its three channels, as in all published figures, however unlike a digit they are; the good
ones, which it is sure of, are counted apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pellucid.data import mnist
from pellucid.evaluate.compare.pictures import FULL, QUICK, Pictures
from pellucid.evaluate.coverage import Coverage, coverage
from pellucid.evaluate.digits import DigitClassifier
from pellucid.gan import GANConfig

COMPARED = 1000  # pictures for precision and recall
UNSURE = 0.05  # of real digits the classifier is less sure than of a good one


class StackedMnist(Pictures):
    """Learns from nine digits in ten; the rest tell how sure the classifier is of real ones."""

    name, title = "stacked-mnist", "Stacked MNIST: three digits, 1000 kinds"
    modes = mnist.MODES
    networks = GANConfig(size=mnist.SIZE, latent=100, generator_width=48, discriminator_width=48)
    features = "the classifier's features of the three channels"
    good = "each of its digits is recognised as surely as 19 of 20 real ones"
    quick, full = replace(QUICK, samples=2600), replace(FULL, samples=26_000)

    def __init__(self, digits: mnist.Digits, classifier: DigitClassifier) -> None:
        self.digits, self.held = digits.split(False), digits.split(True)
        self.classifier = classifier
        sure = self.look_at(self.held.pixels[:, None])[1]
        self.least = float(sure.quantile(UNSURE))

    @torch.no_grad()
    def look_at(self, channels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The digit, how sure that is (0..1), and the features of (N, 1, 28, 28): (N,) (N,) (N, D)."""
        features = self.classifier.features(channels)
        sure, digit = self.classifier.head(features).softmax(dim=1).max(dim=1)
        return digit, sure, features

    def draw(self, count: int, rng: np.random.Generator) -> Tensor:
        return mnist.stacked(self.digits, count, rng)

    def measure(self, batches: Iterable[Tensor]) -> Coverage:
        kinds, good, features = [], [], []
        for batch in batches:
            digit, sure, seen = self.look_at(batch.flatten(0, 1)[:, None])
            kinds.append((digit.view(-1, 3) * torch.tensor([100, 10, 1])).sum(dim=1))
            good.append((sure.view(-1, 3) >= self.least).all(dim=1))
            features.append(seen.view(len(batch), -1))
        kind, well = torch.cat(kinds), torch.cat(good)
        real = mnist.stacked(self.digits, COMPARED, np.random.default_rng(1))
        seen = self.look_at(real.flatten(0, 1)[:, None])[2].view(COMPARED, -1)
        return coverage(kind, well, self.modes, seen, torch.cat(features)[:COMPARED])
