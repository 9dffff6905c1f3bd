"""A classifier of things and styles, trained only to judge the generator.

It sees augmented training pictures (shifted, scaled, mirrored, tinted, on coloured grounds, blurred
as an autoencoder blurs, noisy) and never takes part in training the generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.data.emoji import EmojiArt, Mix, compose
from pellucid.train.loop import (
    Ema,
    Report,
    autocast,
    check,
    device_of,
    generator_of,
    learning_rate,
    load_state,
    rng_of,
    save_state,
)

MIX = Mix(tinted=0.2, on_color=0.2, pair=0.0)


class Block(nn.Module):
    """Two 3x3 convolutions beside a 1x1 one (He et al. 2016); halves the size."""

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
class ClassifierOptions:
    """Options of ``pellucid train classifier``."""

    art: Path = Path("runs/art64.npz")
    out: Path = Path("runs/classifier")
    steps: int = 1500
    batch: int = 64
    rate: float = 2e-3
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1, mps."""
    seed: int = 1
    resume: bool = False


def augmented(pixels: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """Blur and noise as a generator's pictures have, on a random half each."""
    size = pixels.shape[-1]
    soft = F.interpolate(pixels, size=int(rng.integers(size // 3, size)), mode="area")
    soft = F.interpolate(soft, size=size, mode="bilinear")
    chosen = torch.rand(len(pixels), 1, 1, 1, generator=generator)
    pixels = torch.where(chosen < 0.5, soft, pixels)
    noise = torch.randn(pixels.shape, generator=generator) * 0.1
    return pixels + noise * (chosen * 7 % 1 < 0.5)


def train(options: ClassifierOptions) -> Path:
    """Run the loop; returns the path of the saved state."""
    check(options)
    device = device_of(options.device)
    art = EmojiArt.load(options.art)
    torch.manual_seed(options.seed)
    network = Classifier(len(art.concepts), len(art.styles))
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), options.rate, weight_decay=0.02)
    ema = Ema(network, 0.99)
    path, first = options.out / "state.pt", 0
    if options.resume and (state := load_state(path)):
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.restore(state["ema"], state["updates"])
        first = state["step"]
    report = Report("classifier", options.steps, first)
    network.train()
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.rate, 100, 0.4)
        rng, generator = rng_of(options.seed, step), generator_of(options.seed, step)
        samples = [compose(art, rng, MIX) for _ in range(options.batch)]
        pixels = torch.stack([torch.from_numpy(s.pixels) for s in samples])
        pixels = augmented(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, rng, generator)
        things = torch.tensor([s.concepts[0] for s in samples]).to(device)
        styles = torch.tensor([s.style for s in samples]).to(device)
        pixels = pixels.to(device).contiguous(memory_format=torch.channels_last)
        with autocast(device):
            thing, style = network(pixels)
            loss = F.cross_entropy(thing, things, label_smoothing=0.05)
            loss = loss + 0.3 * F.cross_entropy(style, styles)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        ema.update(network)
        hits = (thing.argmax(1) == things).float().mean()
        report(
            step,
            options.batch,
            loss=loss.detach(),
            accuracy=hits,
            style=(style.argmax(1) == styles).float().mean(),
        )
        if (step + 1) % 200 == 0 or step + 1 == options.steps:
            save_state(
                path,
                {
                    "model": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "ema": ema.weights,
                    "updates": ema.updates,
                    "step": step + 1,
                },
            )
    return path


def trained(path: Path, art: EmojiArt) -> Classifier:
    """The classifier that `train` left at `path`."""
    state = load_state(path)
    if state is None:
        raise ValueError(f"{path}: no trained classifier; run `pellucid train classifier` first")
    network = Classifier(len(art.concepts), len(art.styles))
    network.load_state_dict(state["ema"])
    return network.eval()
