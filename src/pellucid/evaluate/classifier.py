"""A classifier of things and styles, trained only to judge the generator.

It sees augmented training pictures (shifted, scaled, mirrored, tinted, on coloured grounds, blurred
as an autoencoder blurs, noisy) and never takes part in training the generator.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.data import setting, to_pixels
from pellucid.data.emoji import EmojiArt, Mix, compose
from pellucid.train import loop

MIX = Mix(tinted=0.2, on_color=0.2, pair=0.0)


class Block(nn.Module):
    """Two 3x3 convolutions parallel to a 1x1 one (He et al. 2016); halves the size."""

    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outer)
        self.skip = nn.Conv2d(inner, outer, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(h + self.skip(x))


class Classifier(nn.Module):
    """Pictures (B, 3, S, S) in [-1, 1] -> logits of things (B, concepts), of styles (B, 4)."""

    def __init__(self, concepts: int, styles: int):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.blocks = nn.Sequential(Block(32, 64), Block(64, 128), Block(128, 256))
        self.thing = nn.Linear(256, concepts)
        self.style = nn.Linear(256, styles)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        h = self.blocks(F.relu(self.norm(self.stem(pixels))))
        h = h.mean((2, 3))
        return self.thing(h), self.style(h)


@dataclass(frozen=True)
class ClassifierOptions(loop.RunOptions):
    """Options of ``pellucid train classifier``."""

    art: Path = setting(Path("runs/art64.npz"), "The rendered emoji.")
    out: Path = setting(
        Path("runs/classifier"), "A folder for the state of the run, which is the classifier."
    )
    _: KW_ONLY
    steps: int = setting(1500, loop.STEPS)
    batch: int = setting(64, loop.BATCH)
    rate: float = setting(2e-3, loop.RATE)
    save_every: int = setting(200, loop.SAVE_EVERY)
    seed: int = setting(1, "Of the first weights and the choice of pictures.")


def augmented(pixels: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """Blur and noise as a generator's pictures have, on a random half each."""
    size = pixels.shape[-1]
    soft = F.interpolate(pixels, size=int(rng.integers(size // 3, size)), mode="area")
    soft = F.interpolate(soft, size=size, mode="bilinear")
    chosen = torch.rand(len(pixels), 1, 1, 1, generator=generator)
    pixels = torch.where(chosen < 0.5, soft, pixels)
    noise = torch.randn(pixels.shape, generator=generator) * 0.1
    return pixels + noise * (chosen * 7 % 1 < 0.5)


def train(options: ClassifierOptions, say: loop.Say = loop.silent) -> Path:
    """Run the loop; returns the path of the saved state."""
    device = loop.device_of(options.device)
    art = EmojiArt.load(options.art)
    torch.manual_seed(options.seed)
    network = Classifier(len(art.concepts), len(art.styles))
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), options.rate, weight_decay=0.02)
    parts: dict[str, loop.Stateful] = {"model": network, "optimizer": optimizer}
    ema = loop.Ema(network, 0.99)
    run = loop.Run("classifier", options, loop.Saved(options.out / "state.pt", parts, ema), say)
    network.train()
    for step in run.steps(optimizer, warmup=100, decay_from=0.4):
        rng, generator = loop.rng_of(options.seed, step), loop.generator_of(options.seed, step)
        samples = [compose(art, rng, MIX) for _ in range(options.batch)]
        pixels = augmented(to_pixels([s.pixels for s in samples]), rng, generator)
        pixels = pixels.to(device).contiguous(memory_format=torch.channels_last)
        things = torch.tensor([s.concepts[0] for s in samples]).to(device)
        styles = torch.tensor([s.style for s in samples]).to(device)
        with loop.autocast(device):
            thing, style = network(pixels)
            loss = F.cross_entropy(thing, things, label_smoothing=0.05)
            loss = loss + 0.3 * F.cross_entropy(style, styles)
        run.update(optimizer, loss, max_norm=None)
        run.report(
            loss=loss.detach(),
            accuracy=(thing.argmax(1) == things).float().mean(),
            style=(style.argmax(1) == styles).float().mean(),
        )
        run.save_if_due()
    return run.saved.path


def trained(path: Path, art: EmojiArt) -> Classifier:
    """The classifier that `train` left at `path`."""
    network = Classifier(len(art.concepts), len(art.styles))
    with loop.trained_state(path, "classifier", "classifier") as state:
        network.load_state_dict(state["ema"])
    return network.eval()
