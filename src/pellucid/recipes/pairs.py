"""Pairs for the super-resolution stage: a large picture, and what the first stage makes of it.

The small picture is one of three kinds:

* clean: the box mean of the large one;
* round: through the autoencoder, with noise on the latents of some;
* redrawn: noise is added up to u and the generator takes it away again, guided by the picture's own
  caption. A generator that knows its training pictures by heart comes back close to the truth, with
  its own faults; those that come back too far away are left out.

The last kind decides: with mild faults alone the stage keeps a generator's blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pellucid.conditioning import encode
from pellucid.data import scenes
from pellucid.data.emoji import EmojiArt
from pellucid.diffusion import add_noise, predictor
from pellucid.guidance import ClassifierFree
from pellucid.model import Model
from pellucid.recipes.pool import to_pixels
from pellucid.samplers import ddim
from pellucid.train.loop import rng_of
from pellucid.vae import VAE

CLOSE = 0.3
"""The most that a redrawn picture may differ from the truth: root mean square, range 0..2."""


def box_mean(large: np.ndarray, factor: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (H / factor, W / factor, 3)."""
    height, width = large.shape[0] // factor, large.shape[1] // factor
    means = large.reshape(height, factor, width, factor, 3).mean((1, 3), dtype=np.float32)
    return np.round(means).astype(np.uint8)


def to_uint8(pixels: Tensor) -> np.ndarray:
    """(B, 3, h, w) in [-1, 1] -> (B, h, w, 3) uint8."""
    scaled = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).numpy()


@torch.no_grad()
def through_autoencoder(vae: VAE, small: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """(B, h, w, 3) uint8 -> the same, decoded from latents with up to so much noise on them."""
    generator = torch.Generator().manual_seed(seed)
    latents = vae.to_latents(to_pixels(small))
    level = torch.rand(len(latents), 1, 1, 1, generator=generator) * noise
    latents = latents + level * torch.randn(latents.shape, generator=generator)
    return to_uint8(vae.to_pixels(latents))


@torch.no_grad()
def redraw_latents(
    model: Model,
    small: np.ndarray,
    captions: Sequence[str],
    rng: np.random.Generator,
    guidance: tuple[float, float],
    strength: tuple[float, float] = (0.5, 0.92),
    steps: int = 8,
) -> Tensor:
    """(B, h, w, 3) uint8 -> latents: noised to one u for all and drawn again by `model`."""
    words = model.reading.pooled == "words"
    cond = encode(model.text, model.tokenizer, captions, words=words)
    empty = encode(model.text, model.tokenizer, [""], words=words)
    latents = model.vae.to_latents(to_pixels(small))
    eps = torch.randn(
        latents.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**62)))
    )
    u = float(rng.uniform(*strength))
    levels = [
        model.schedule.level(u * model.schedule.T * (1 - i / steps)) for i in range(steps + 1)
    ]
    predict = predictor(model.backbone, model.prediction)
    denoise = ClassifierFree(predict, cond, empty, float(rng.uniform(*guidance)))
    x = add_noise(latents, eps, levels[0].alpha, levels[0].sigma)
    *_, last = ddim.sample(denoise, x, levels, _no_noise)
    return last.x


@torch.no_grad()
def redraw(
    model: Model,
    small: np.ndarray,
    captions: Sequence[str],
    rng: np.random.Generator,
    guidance: tuple[float, float],
) -> np.ndarray:
    """(B, h, w, 3) uint8 -> the same, as `redraw_latents` has them."""
    latents = redraw_latents(model, small, captions, rng, guidance)
    return to_uint8(model.vae.to_pixels(latents))


def make_latents(
    folder: Path,
    model: Model,
    small: np.ndarray,
    captions: Sequence[str],
    guidance: tuple[float, float],
    seed: int,
    batch: int = 25,
) -> int:
    """Redrawn latents of given pictures, ``latents.npy`` and ``pixels.npy``, of those that came out
    close to the truth; returns how many. What is complete there stays."""
    done = folder / "pixels.npy"
    if done.is_file():
        return len(np.load(done, mmap_mode="r"))
    folder.mkdir(parents=True, exist_ok=True)
    found, truth = [], []
    for start in range(0, len(small), batch):
        part = small[start : start + batch]
        rng = rng_of(seed, start, 4)
        latents = redraw_latents(model, part, captions[start : start + batch], rng, guidance)
        with torch.no_grad():
            changed = to_uint8(model.vae.to_pixels(latents))
        near = distance(changed, part) < CLOSE
        found.append(latents[torch.from_numpy(near)].half().numpy())
        truth.append(part[near])
    np.save(folder / "latents.npy", np.concatenate(found))
    temporary = folder / "pixels.tmp.npy"
    np.save(temporary, np.concatenate(truth))
    temporary.replace(done)
    return sum(map(len, truth))


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square of each picture, of a range of 2: (B, h, w, 3) uint8 twice -> (B,)."""
    return np.square(a.astype(np.float32) - b).mean((1, 2, 3)) ** 0.5 / 127.5


def _no_noise(x: Tensor) -> Tensor:
    raise AssertionError("DDIM without eta asks for no noise")


def make(
    folder: Path,
    art: EmojiArt,
    count: int,
    mix: scenes.SceneMix,
    seed: int,
    among: Sequence[int],
    worse: Callable[[np.ndarray, Sequence[str], np.random.Generator], np.ndarray] | None,
    factor: int = 4,
    held: bool = False,
    batch: int = 25,
) -> int:
    """Write `count` pairs to `folder`; returns how many. What is complete there stays.

    art: at the size of the large pictures. worse: small pictures (B, h, w, 3) and their captions ->
    what the first stage makes of them; None leaves them clean. Of what `worse` moved further than
    `CLOSE` others are drawn, up to four times the count in all.
    """
    done = folder / "large.npy"
    if done.is_file():
        return len(np.load(done, mmap_mode="r"))
    folder.mkdir(parents=True, exist_ok=True)
    smalls: list[np.ndarray] = []
    larges: list[np.ndarray] = []
    for start in range(0, 4 * count, batch):
        rng = rng_of(seed, start, 4)
        plans = [scenes.plan(art, rng, mix, held=held, among=among) for _ in range(batch)]
        large = np.stack([scenes.draw(art, p, art.size) for p in plans])
        small = np.stack([box_mean(p, factor) for p in large])
        if worse is not None:
            changed = worse(small, [p.caption for p in plans], rng)
            near = distance(changed, small) < CLOSE
            small, large = changed[near], large[near]
        smalls += list(small)
        larges += list(large)
        if len(larges) >= count:
            break
    np.save(folder / "small.npy", np.stack(smalls[:count]))
    temporary = folder / "large.tmp.npy"
    np.save(temporary, np.stack(larges[:count]))
    temporary.replace(done)
    return min(len(larges), count)
