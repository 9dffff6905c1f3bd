"""Measure whether attention maps are where the things are, on pictures with known places.

    python benchmarks/attention.py [--model FILE] [--art runs/art64.npz] [--count 50] [--held]

A picture of two things side by side or one above the other is composed as for training, made noisy,
and looked at once with its caption. Of each noun the share of its map that lies on its own half of
the picture is counted: 0.5 is chance, 1 is all of it. As a map may prefer one side whatever is
there, it is also counted how often the two maps of a picture are the right way around relative to
each other; chance is 0.5 again. Each figure stands with its standard error over the pictures.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pellucid import checkpoints
from pellucid.conditioning import encode_prompts
from pellucid.data.emoji import LEFT, EmojiArt, Mix, compose, core_concepts
from pellucid.diffusion import add_noise
from pellucid.model import Model
from pellucid.runtime import Runtime
from pellucid.train.token_loss import columns

NOISE = (0.3, 0.5, 0.7, 0.9)  # of the whole time


class Pair(NamedTuple):
    """A composed picture and what is where in it."""

    pixels: Tensor  # (3, H, W) in [-1, 1]
    caption: str
    columns: Tensor  # (2, L) bool: the tokens of the first and of the second thing
    across: bool  # the first is left of the second; else above it


def pairs(model: Model, art: EmojiArt, count: int, held: bool) -> list[Pair]:
    """`count` pictures of two things; held: in combinations that training never saw."""
    rng, core = np.random.default_rng(0), core_concepts(art)
    mix = Mix(tinted=0, on_color=0, pair=1, styled=0)
    found: list[Pair] = []
    while len(found) < count:
        sample = compose(art, rng, mix, held=held, among=core)
        if not sample.phrases:  # no partner was to be had
            continue
        across = sample.phrases[0].box == LEFT
        words = columns(model.tokenizer, sample.caption, sample.phrases)[:2]
        pixels = torch.from_numpy(sample.pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1
        found.append(Pair(pixels, sample.caption, words, across))
    return found


def own_half(weights: Tensor, noun: Tensor, across: bool, second: bool) -> float:
    """The share of a noun's map (h, w, L) on its half of the picture; 0.5 of a map of zeros."""
    mass = weights[..., noun].sum(-1)
    along = mass.sum(0 if across else 1)  # (w,) or (h,)
    half = len(along) // 2
    first, last = float(along[:half].sum()), float(along[-half:].sum())
    return 0.5 if first + last == 0 else (last if second else first) / (first + last)


@torch.no_grad()
def look(model: Model, pair: Pair, noise: float, generator: torch.Generator) -> list[Tensor]:
    """The maps of one look, (h, w, L) for each layer, heads averaged; then the mean of those."""
    x0 = model.vae.to_latents(pair.pixels[None])
    eps = torch.randn(x0.shape, generator=generator)
    level = model.schedule.level(noise * model.schedule.last_t)
    maps: list[Tensor] = []
    x = add_noise(x0, eps, level.alpha, level.sigma)
    model.backbone(x, torch.tensor([level.t]), encode_prompts(Runtime(model), [pair.caption]), maps)
    layers = [weights[0].mean(0) for weights in maps]
    size = max(layers, key=lambda layer: layer.shape[0] * layer.shape[1]).shape[:2]
    same = [
        torch.nn.functional.interpolate(layer.permute(2, 0, 1)[None], size)[0].permute(1, 2, 0)
        for layer in layers
    ]
    return [*layers, torch.stack(same).mean(0)]


def told(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values) / len(values) ** 0.5:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="without it the model that ships with Pellucid")
    parser.add_argument("--art", type=Path, default=Path("runs/art64.npz"))
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--held", action="store_true", help="combinations that were never trained")
    options = parser.parse_args()

    model = checkpoints.load(options.model)
    chosen = pairs(model, EmojiArt.load(options.art), options.count, options.held)
    print(f"{model.name}, {len(chosen)} pictures of two things; chance is 0.5")
    for noise in NOISE:
        generator = torch.Generator().manual_seed(0)
        shares: dict[str, list[float]] = defaultdict(list)
        right: dict[str, list[float]] = defaultdict(list)
        for pair in chosen:
            layers = look(model, pair, noise, generator)
            for i, weights in enumerate(layers, start=1):
                name = f"layer {i}" if i < len(layers) else "all layers"
                first, second = (
                    own_half(weights, noun, pair.across, second=bool(k))
                    for k, noun in enumerate(pair.columns)
                )
                shares[name].append((first + second) / 2)
                right[name].append(float(first + second > 1))
        for name in shares:
            print(
                f"t = {noise:.1f} T, {name}: on its own half {told(shares[name])}, "
                f"the right way around {told(right[name])}"
            )


if __name__ == "__main__":
    main()
