"""Pairs for the super-resolution stage: a large picture, and what the first stage makes of it.

The small picture is one of three kinds:

* clean: the box mean of the large one;
* autoencoder: decoded from its latents, with noise on them;
* redrawn: noise is added to its latents, and the model takes it away again, guided by the picture's
  own caption (SDEdit, Meng et al. 2021, arXiv:2108.01073). A model that knows its training pictures
  by heart comes back close to the truth, with its own faults; those that come back too far away are
  left out.

The last kind decides: with mild faults alone the stage keeps a generator's blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pellucid import checkpoints
from pellucid.conditioning import encode_captions
from pellucid.data import scenes, setting, to_pixels
from pellucid.data.emoji import EmojiArt, core_concepts
from pellucid.diffusion import add_noise, predictor
from pellucid.files import new_file
from pellucid.guidance import ClassifierFree, as_denoiser
from pellucid.model import Model
from pellucid.plugins import choose
from pellucid.samplers import ddim
from pellucid.train import loop

MIX = scenes.SceneMix(
    plain=0.6, tint=0.1, ground=0.1, layout=0.03, pair=0.07, colors=0.03, count=0.04, many=0.03
)
KINDS = ("clean", "autoencoder", "redrawn")
FACTOR = 4
HELD = 10  # one concept in so many is kept for measuring
BATCH = 25
GUIDANCE = (1.0, 3.0)
STRENGTH = (0.5, 0.92)  # of the noise, as a fraction of the way
STEPS = 8


@dataclass(frozen=True)
class PairsOptions:
    """Options of ``pellucid train pairs``."""

    model: str = setting("runs/emoji.safetensors", "The model of the first stage.")
    art: Path = setting(Path("runs/art256.npz"), "The rendered emoji, in the large size.")
    out: Path = setting(Path("runs/pairs"), "A folder for small.npy, large.npy and latents.npy.")
    _: KW_ONLY
    kind: str = setting("redrawn", f"What the small pictures are: {', '.join(KINDS)}.")
    pictures: int = setting(1000, "Pairs to make.")
    latent_noise: float = setting(0.35, "The most noise on the latents, for kind=autoencoder.")
    held: bool = setting(False, f"Use the one concept in {HELD} that the others leave out.")
    core: bool = setting(False, "Only the core concepts.")
    close: float = setting(
        0.3, "The most that a small picture may differ from the truth: root mean square, of 2."
    )
    device: str = setting("auto", "auto (a GPU if there is one), cpu, cuda, cuda:1, mps.")
    seed: int = setting(0, "Of the choice of pictures and of the noise.")
    resume: bool = setting(False, "Leave what is complete.")

    def __post_init__(self) -> None:
        choose(self.kind, KINDS, "kind of pairs")
        if self.pictures < 1:
            raise ValueError(f"pictures must be at least 1, got {self.pictures}")


class PairBatch(NamedTuple):
    """Some pairs."""

    small: np.ndarray  # (B, h, w, 3) uint8
    large: np.ndarray  # (B, FACTOR * h, FACTOR * w, 3) uint8
    latents: np.ndarray  # (B, C, h', w') float16


def train(options: PairsOptions, say: loop.Say = loop.silent) -> Path:
    """Make the pairs; returns their folder. What is complete stays, with ``resume``."""
    done = options.out / "large.npy"
    if options.resume and done.is_file():
        return options.out
    art = EmojiArt.load(options.art)
    model = checkpoints.load(options.model, loop.device_of(options.device))
    among = core_concepts(art) if options.core else range(len(art.concepts))
    among = [c for c in among if (c % HELD == 0) == options.held]
    found: list[PairBatch] = []
    for made in batches(options, art, model, among):
        found.append(made)
        count = min(sum(len(m.large) for m in found), options.pictures)
        say(f"pairs {count}/{options.pictures}", share=count / options.pictures)
        if count == options.pictures:
            break
    if not sum(len(made.large) for made in found):
        raise ValueError(f"no picture that {options.model} has redrawn is close to the truth")
    for name in ("small", "latents", "large"):  # the last one says that all are there
        array = np.concatenate([getattr(made, name) for made in found])[: options.pictures]
        path = options.out / f"{name}.npy"
        with new_file(path, make_folder=True) as temporary, open(temporary, "wb") as file:
            np.save(file, array)
    return options.out


@torch.no_grad()
def batches(
    options: PairsOptions,
    art: EmojiArt,
    model: Model,
    among: Sequence[int],
) -> Iterator[PairBatch]:
    """Pairs, at most four times as many as were asked for: those too far apart are left out."""
    device = next(model.vae.parameters()).device
    for start in range(0, 4 * options.pictures, BATCH):
        rng = loop.rng_of(options.seed, start, 4)
        plans = [scenes.plan(art, rng, MIX, among=among) for _ in range(BATCH)]
        large = np.stack([scenes.draw(art, plan, art.size) for plan in plans])
        clean = np.stack([box_mean(picture, FACTOR) for picture in large])
        small, latents = clean, model.vae.to_latents(to_pixels(list(clean)).to(device))
        if options.kind == "autoencoder":
            latents = noisy(latents, options.latent_noise, rng)
        elif options.kind == "redrawn":
            latents = redraw(model, latents, [plan.caption for plan in plans], rng)
        if options.kind != "clean":
            small = to_uint8(model.vae.to_pixels(latents))
        near = distance(small, clean) < options.close
        yield PairBatch(small[near], large[near], latents.half().cpu().numpy()[near])


def noisy(latents: Tensor, most: float, rng: np.random.Generator) -> Tensor:
    """Latents (B, C, h, w) with noise of a deviation of up to `most`."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    level = torch.rand(len(latents), 1, 1, 1, generator=generator) * most
    eps = torch.randn(latents.shape, generator=generator)
    return latents + (level * eps).to(latents)


def redraw(model: Model, latents: Tensor, captions: list[str], rng: np.random.Generator) -> Tensor:
    """Latents (B, C, h, w), noised to one time for all and drawn again by `model`."""
    words = model.text_encoding.pooled == "words"
    cond = encode_captions(model.text, model.tokenizer, captions, words=words)
    empty = encode_captions(model.text, model.tokenizer, [""], words=words)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    eps = torch.randn(latents.shape, generator=generator).to(latents)
    schedule, top = model.schedule, float(rng.uniform(*STRENGTH)) * model.schedule.T
    levels = [schedule.level(top * (1 - i / STEPS)) for i in range(STEPS + 1)]
    predict = predictor(model.backbone, model.prediction)
    guided = ClassifierFree(predict, cond, empty, float(rng.uniform(*GUIDANCE)))
    x = add_noise(latents, eps, levels[0].alpha, levels[0].sigma)
    *_, last = ddim.sample(as_denoiser(guided), x, levels, _no_noise)
    return last.x


def _no_noise(x: Tensor) -> Tensor:
    raise AssertionError("DDIM without eta asks for no noise")


def box_mean(large: np.ndarray, factor: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (H / factor, W / factor, 3)."""
    height, width = large.shape[0] // factor, large.shape[1] // factor
    means = large.reshape(height, factor, width, factor, 3).mean((1, 3), dtype=np.float32)
    return np.round(means).astype(np.uint8)


def to_uint8(pixels: Tensor) -> np.ndarray:
    """(B, 3, h, w) in [-1, 1] -> (B, h, w, 3) uint8."""
    scaled = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Root mean square of each picture, of a range of 2: (B, h, w, 3) uint8 twice -> (B,)."""
    return np.square(a.astype(np.float32) - b).mean((1, 2, 3)) ** 0.5 / 127.5
