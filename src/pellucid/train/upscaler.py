"""Train the super-resolution stage of a cascade: pairs of a small and a large picture.

Pairs come in folders of ``small.npy`` (N, h, w, 3) and ``large.npy`` (N, factor * h, factor * w, 3),
uint8, which are mapped into memory. A folder's name may have a share of the crops. What decides how
the stage does on a generator's pictures is whether some pairs have that generator's faults in their
small picture; ``recipes`` has a way to make such pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid import cascade
from pellucid.cascade import Upscaler, UpscalerConfig
from pellucid.train.loop import (
    Ema,
    Report,
    autocast,
    check,
    generator_of,
    learning_rate,
    load_state,
    rng_of,
    save_state,
    say,
)
from pellucid.vae import psnr


@dataclass(frozen=True)
class UpscalerOptions:
    """Options of ``pellucid train upscaler``."""

    pairs: tuple[tuple[Path, float], ...]
    """Folders of pairs, and the share of the crops that each gives."""
    held: tuple[Path, ...] = ()
    """Folders of pairs that are only measured."""
    out: Path = Path("runs/upscaler")
    steps: int = 4600
    batch: int = 12
    crop: int = 24
    """Side of a crop of the small picture; a multiple of the config's period."""
    rate: float = 1e-3
    decay_from: float = 0.4
    ema: float = 0.998
    augment: float = 0.15
    """The most noise on the small picture; half of the crops have none."""
    save_every: int = 200
    measure_every: int = 1000
    seed: int = 0


class Pairs(NamedTuple):
    """Small and large pictures that belong together."""

    small: np.ndarray  # (N, h, w, 3) uint8
    large: np.ndarray  # (N, H, W, 3) uint8

    @classmethod
    def load(cls, folder: Path) -> Pairs:
        """ValueError if the folder has no pairs, or they do not fit each other."""
        files = [folder / "small.npy", folder / "large.npy"]
        if missing := [f for f in files if not f.is_file()]:
            raise ValueError(f"{missing[0]} is not there; a folder of pairs has it")
        small, large = (np.load(f, mmap_mode="r") for f in files)
        if small.shape[0] != large.shape[0] or large.shape[1] % small.shape[1]:
            raise ValueError(f"{folder}: {small.shape} and {large.shape} are no pairs")
        return cls(small, large)


TRIES = 3
"""Places of a picture that are looked at for one crop; that with the most in it is taken."""


def to_pixels(drawn: np.ndarray) -> Tensor:
    """(B, h, w, 3) uint8 -> (B, 3, h, w) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1


def crops(
    sources: Sequence[tuple[Pairs, float]],
    count: int,
    crop: int,
    config: UpscalerConfig,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Small (B, 3, crop, crop) and large crops, half of them mirrored.

    They begin and end on the generator's grid, so a mirrored one lies on it too.
    """
    shares = np.array([share for _, share in sources])
    step = max(config.period, 1)
    small, large = [], []
    for which in rng.choice(len(sources), count, p=shares / shares.sum()):
        pairs = sources[which][0]
        i = int(rng.integers(len(pairs.small)))
        height, width = pairs.small.shape[1:3]
        f = config.factor
        best = -1.0
        for _ in range(TRIES):  # an empty crop teaches nothing
            y = int(rng.integers((height - crop) // step + 1)) * step
            x = int(rng.integers((width - crop) // step + 1)) * step
            seen = pairs.small[i, y : y + crop, x : x + crop]
            if (busy := float(np.std(seen, axis=(0, 1)).sum())) > best:
                best, top, left = busy, y, x
        one = pairs.small[i, top : top + crop, left : left + crop]
        two = pairs.large[i, f * top : f * (top + crop), f * left : f * (left + crop)]
        if rng.random() < 0.5:
            one, two = one[:, ::-1], two[:, ::-1]
        small.append(one)
        large.append(two)
    return to_pixels(np.stack(small)), to_pixels(np.stack(large))


def sample_u(count: int, generator: torch.Generator) -> Tensor:
    """Times: sigmoid of a normal of mean 0.4 and deviation 1.2, and 1 for one in ten."""
    u = (torch.randn(count, generator=generator) * 1.2 + 0.4).sigmoid()
    return torch.where(torch.rand(count, generator=generator) < 0.1, torch.ones(()), u)


def laplacian_energy(pixels: Tensor) -> Tensor:
    """Mean square of the discrete Laplacian of each picture, (B,): how sharp it is."""
    kernel = pixels.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).expand(3, 1, 3, 3)
    return F.conv2d(pixels, kernel, groups=3).square().mean(dim=(1, 2, 3))


@torch.no_grad()
def measure(network: Upscaler, pairs: Pairs, count: int = 24, steps: int = 2) -> dict[str, float]:
    """PSNR and sharpness (Laplacian energy over that of the truth) of bicubic and of the stage."""
    index = np.linspace(0, len(pairs.small) - 1, min(count, len(pairs.small))).astype(int)
    small, large = to_pixels(pairs.small[index]), to_pixels(pairs.large[index])
    eps = torch.randn(large.shape, generator=torch.Generator().manual_seed(0))
    drawn = []
    for one, own in zip(small.split(4), eps.split(4), strict=True):
        with autocast(one.device):
            *_, last = cascade.sample(network, one, own, steps)
        drawn.append(last.large)
    bicubic = cascade.enlarge(small, network.config.factor).clamp(-1, 1)
    made = torch.cat(drawn)
    real = laplacian_energy(large).mean()
    return {
        "PSNR bicubic": psnr(bicubic, large),
        "PSNR": psnr(made, large),
        "sharpness bicubic": float(laplacian_energy(bicubic).mean() / real),
        "sharpness": float(laplacian_energy(made).mean() / real),
    }


def train(options: UpscalerOptions, config: UpscalerConfig | None = None) -> Path:
    """Run the loop, going on from what was saved; returns the path of the state."""
    check(options)
    config = UpscalerConfig() if config is None else config
    sources = [(Pairs.load(folder), share) for folder, share in options.pairs]
    held = {folder.name: Pairs.load(folder) for folder in options.held}
    torch.manual_seed(options.seed)
    network = Upscaler(config)
    cascade.init_for_training(network)
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(
        parameters, options.rate, (0.9, 0.99), weight_decay=0.01, fused=True
    )
    ema = Ema(network, options.ema)
    path, first = options.out / "state.pt", 0
    if state := load_state(path):
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.restore(state["ema"], state["updates"])
        first = state["step"]
    report = Report("upscaler", options.steps, first, every=100)
    average: float | Tensor = 1.0
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.rate, 100, options.decay_from)
        generator = generator_of(options.seed, step)
        small, large = crops(
            sources, options.batch, options.crop, config, rng_of(options.seed, step)
        )
        u = sample_u(options.batch, generator)
        noise = (torch.rand(options.batch, generator=generator) * 2 - 1).clamp(min=0)
        eps = torch.randn(large.shape, generator=generator)
        eps_small = torch.randn(small.shape, generator=generator)
        with autocast(small.device):
            losses = cascade.training_loss(
                network, large, small, noise * options.augment, u, eps, eps_small, config
            )
        loss = losses.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.update(network)
        average = 0.99 * average + 0.01 * loss.detach()
        report(step, options.batch, loss=average)
        last = step + 1 == options.steps
        if (step + 1) % options.save_every == 0 or last:
            whole = {
                "model": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": ema.weights,
                "updates": ema.updates,
                "step": step + 1,
                "config": asdict(config),
            }
            save_state(path, whole)
        if (step + 1) % options.measure_every == 0 or last:
            with ema.applied(network):
                for name, pairs in held.items():
                    figures = measure(network, pairs).items()
                    say(f"  {name}: " + "  ".join(f"{k} {v:.3f}" for k, v in figures))
    return path


def trained(path: Path) -> Upscaler:
    """The averaged network that `train` left at `path`, on the CPU."""
    state = load_state(path)
    if state is None:
        raise ValueError(f"{path}: no trained upscaler there; run `pellucid train upscaler` first")
    known = {**state["config"]}
    known["block_out_channels"] = tuple(known["block_out_channels"])
    network = Upscaler(UpscalerConfig(**known))
    network.load_state_dict(state["ema"])
    return network.eval()
