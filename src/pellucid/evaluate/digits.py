"""A classifier of handwritten digits, trained only to count what a generator draws."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.data import mnist
from pellucid.train import loop

FEATURES = 64


class DigitClassifier(nn.Module):
    """Digits (B, 1, 28, 28) in [-1, 1] -> logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 5, 2, 2, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, FEATURES, 3, 2, 1, bias=False),
            nn.BatchNorm2d(FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, mnist.DIGITS)

    def features(self, pixels: Tensor) -> Tensor:
        """The input of the last layer: (B, FEATURES)."""
        return self.layers(pixels).mean(dim=(2, 3))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.features(pixels))


@dataclass(frozen=True)
class DigitsOptions(loop.RunOptions):
    """How the classifier is trained; the state of the run is the file `out`."""

    digits: Path
    out: Path
    _: KW_ONLY
    steps: int = 1200
    batch: int = 128
    rate: float = 3e-3


def shifted(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture (B, 1, h, w) moved, turned and scaled a little: by up to 2 pixels, 10 degrees,
    10 percent."""
    angle, scale, x, y = (torch.rand(4, len(pixels), generator=generator) * 2 - 1).unbind()
    angle, scale = angle * 0.17, 1 + 0.1 * scale
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cos, -sin, x / 7], 1), torch.stack([sin, cos, y / 7], 1)]
    where = F.affine_grid(torch.stack(rows, 1), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels + 1, where, align_corners=False) - 1  # the ground is -1


def train(options: DigitsOptions, say: loop.Say = loop.silent) -> Path:
    """Run the loop; returns the path of the trained classifier."""
    learned = mnist.load(options.digits).split(False)
    torch.manual_seed(options.seed)
    network = DigitClassifier()
    optimizer = torch.optim.AdamW(network.parameters(), options.rate, weight_decay=0.02)
    run = loop.Run("digits", options, loop.Saved(options.out, {"model": network}), say, every=200)
    for step in run.steps(optimizer, warmup=50, decay_from=0.3):
        rng, generator = loop.rng_of(options.seed, step), loop.generator_of(options.seed, step)
        index = torch.from_numpy(rng.integers(len(learned), size=options.batch))
        pixels = shifted(learned.pixels[index][:, None], generator)
        loss = F.cross_entropy(network(pixels), learned.labels[index], label_smoothing=0.05)
        run.update(optimizer, loss, max_norm=None)
        run.report(loss=loss.detach())
    run.save()
    return options.out


def trained(path: Path) -> DigitClassifier:
    """The classifier that `train` left at `path`."""
    state = loop.load_state(path)
    if state is None:
        raise ValueError(f"{path}: no trained classifier of digits there")
    network = DigitClassifier()
    network.load_state_dict(state["model"])
    return network.eval().requires_grad_(False)
