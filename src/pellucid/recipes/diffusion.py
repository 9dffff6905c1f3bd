"""The network of the small model: from a pool of latents and captions to a U-Net.

As `pellucid.train.diffusion`, with what a pool of scenes adds: scenes come in once single things
are on their way, and the token loss knows the place of up to four things.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid import images, noise
from pellucid.backbones.unet import UNet, UNetConfig, init_for_training
from pellucid.clip import TextTower
from pellucid.conditioning import encode
from pellucid.data.scenes import MOST
from pellucid.diffusion import Conditioning, predictor, training_loss
from pellucid.guidance import ClassifierFree
from pellucid.recipes import pool, text
from pellucid.samplers import ddim
from pellucid.schedule import Schedule
from pellucid.tokenizer import Tokenizer
from pellucid.train.loop import (
    Ema,
    Report,
    autocast,
    generator_of,
    load_state,
    rng_of,
    save_state,
    say,
)
from pellucid.train.token_loss import token_loss
from pellucid.vae import VAE

SCHEDULE = Schedule("flow")
PREDICTION = "flow"
SINGLE = ("plain", "tint", "ground")
SIZE = 64
UNET = UNetConfig(
    in_channels=8,
    out_channels=8,
    block_out_channels=(96, 224),
    layers_per_block=1,
    transformer_layers=(1, 1),
    mid_transformer_layers=1,
    heads=(3, 7),
    cross_attention_dim=text.WIDTH,
    use_linear_projection=True,
    norm_groups=16,
    pooled_dim=2 * text.WIDTH,
    map_channels=32,
    map_size=8,
    map_width=768,
    film=True,
    patch_size=2,
)
PROMPTS = (
    "a rabbit",
    "a guitar",
    "a red apple",
    "a dog",
    "a castle",
    "a blue car",
    "a frog on a yellow background",
    "a horse, noto style",
    "a cat and a star",
    "a rocket above a house",
    "a purple owl and a green key",
    "three bananas",
    "a small panda",
    "a hamburger in the top left corner",
    "a cat, a crown and a pizza",
    "four hearts",
)


@dataclass(frozen=True)
class Options:
    pools: tuple[Path, ...]
    held: Path
    out: Path
    steps: int = 400_000
    batch: int = 32
    rate: float = 1e-3
    warmup: int = 300
    decay: tuple[int, int] = (0, 0)
    """Steps between which the rate falls to zero by a cosine; (0, 0): it does not fall."""
    drop: float = 0.1
    token_loss: float = 0.03
    token_every: int = 2
    """Steps between two with the token loss, which costs a quarter of a step."""
    ema: float = 0.9995
    ema_every: int = 2
    single_first: int = 6000
    """Until this step most pictures have one thing."""
    single_share: tuple[float, float] = (0.9, 0.6)
    """Share of pictures with one thing before and from that step on."""
    noise_mean: float = 0.5
    """Mean of logit(t / T); above 0 the noisier half, where things get their place, comes more."""
    save_every: int = 500
    sample_every: int = 2000
    compiled: bool = False
    seed: int = 0


class Pool:
    """Shards of latents, captions and places, read as they are asked for."""

    def __init__(self, folders: Sequence[Path], tokenizer: Tokenizer) -> None:
        self.latents = [np.load(f / "latents.npy", mmap_mode="r") for f in folders]
        self.tokens = [np.load(f / "tokens.npy", mmap_mode="r") for f in folders]
        self.pooled = [np.load(f / "pooled.npy", mmap_mode="r") for f in folders]
        scenes = [s for f in folders for s in pool.read(f)]
        self.kinds = np.array([s["kind"] for s in scenes])
        self.single = np.flatnonzero(np.isin(self.kinds, SINGLE))
        self.several = np.flatnonzero(~np.isin(self.kinds, SINGLE))
        self.columns, self.boxes = places(scenes, tokenizer)
        self.starts = np.cumsum([0] + [len(x) for x in self.latents])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def rows(self, arrays: Sequence[np.ndarray], index: np.ndarray) -> Tensor:
        shards = np.searchsorted(self.starts, index, "right") - 1
        found = [arrays[s][i - self.starts[s]] for s, i in zip(shards, index, strict=True)]
        return torch.from_numpy(np.stack(found)).float()

    def choose(self, rng: np.random.Generator, count: int, single: float) -> np.ndarray:
        alone = rng.random(count) < single
        one = self.single[rng.integers(len(self.single), size=count)]
        more = self.several[rng.integers(len(self.several), size=count)]
        return np.where(alone, one, more)

    def batch(
        self, index: np.ndarray, dropped: Tensor, empty: Conditioning
    ) -> tuple[Tensor, Conditioning]:
        assert empty.pooled is not None
        tokens = torch.where(dropped[:, None, None], empty.tokens, self.rows(self.tokens, index))
        pooled = torch.where(dropped[:, None], empty.pooled, self.rows(self.pooled, index))
        return self.rows(self.latents, index), Conditioning(tokens, pooled)


def places(scenes: Sequence[dict[str, Any]], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Which tokens name each thing, (N, MOST, L) bool, and where it is, (N, MOST, 4)."""
    length = tokenizer.context_length
    columns = torch.zeros(len(scenes), MOST, length, dtype=torch.bool)
    boxes = torch.zeros(len(scenes), MOST, 4)
    for i, scene in enumerate(scenes):
        for j, (start, end, box) in enumerate(scene["places"][:MOST]):
            first = 1 + len(tokenizer.encode(scene["caption"][:start]))  # the row begins with bos
            last = 1 + len(tokenizer.encode(scene["caption"][:end]))
            columns[i, j, first : min(last, length - 1)] = True
            boxes[i, j] = torch.tensor(box)
    return columns, boxes


def rate_at(options: Options, step: int) -> float:
    """Linear warm-up, constant, and between the steps of `decay` a cosine to zero."""
    if step < options.warmup:
        return options.rate * (step + 1) / options.warmup
    begin, end = options.decay
    if end == 0 or step < begin:
        return options.rate
    share = min((step - begin) / max(end - begin, 1), 1.0)
    return options.rate * 0.5 * (1 + float(np.cos(np.pi * share)))


@torch.no_grad()
def validation_loss(
    network: nn.Module, held: Pool, index: np.ndarray, empty: Conditioning
) -> float:
    """Mean loss over held-out pictures at eight fixed times with fixed noise."""
    losses = []
    for start in range(0, len(index), 64):
        part = index[start : start + 64]
        latents, cond = held.batch(part, torch.zeros(len(part), dtype=torch.bool), empty)
        eps = torch.randn(latents.shape, generator=torch.Generator().manual_seed(start))
        t = (torch.arange(len(part)) % 8 + 0.5) / 8 * SCHEDULE.T
        with autocast(torch.device("cpu")):
            losses.append(training_loss(network, latents, cond, SCHEDULE, PREDICTION, t, eps))
    return float(torch.cat(losses).mean())


@torch.no_grad()
def sheet(
    network: nn.Module,
    vae: VAE,
    wanted: Conditioning,
    empty: Conditioning,
    path: Path,
    guidance: float = 3.0,
    steps: int = 12,
) -> None:
    """What the network draws by now: fixed prompts, seeds 0, 1, ..., DDIM."""
    seeds = noise.generators(0, len(wanted))
    side = SIZE // vae.config.downsample
    x = noise.draw("gaussian", (vae.config.latent_channels, side, side), seeds)
    x = x.to(wanted.tokens.device)
    guided = ClassifierFree(predictor(network, PREDICTION), wanted, empty, guidance)
    levels = SCHEDULE.levels(steps, "uniform")
    *_, last = ddim.sample(guided, x * levels[0].sigma, levels, noise.source(seeds))
    drawn = [images.to_pil(p) for p in vae.to_pixels(last.x)]
    path.parent.mkdir(parents=True, exist_ok=True)
    images.save(images.grid(drawn, 8), path)


@torch.no_grad()
def grown(old: UNet, config: UNetConfig) -> UNet:
    """A network of `config` that computes what `old` computes, and has more to learn with.

    As Net2Net (Chen et al. 2015, arXiv:1511.05641): attention at levels that had none ends in a
    zero, and further hidden units of the map's MLP have no effect yet.
    ValueError if something of `old` would be lost.
    """
    network = UNet(config)
    init_for_training(network)
    mine, theirs = network.state_dict(), old.state_dict()
    if lost := sorted(theirs.keys() - mine.keys()):
        raise ValueError(f"the larger network has no {lost[0]}")
    for name, value in theirs.items():
        place = mine[name]
        if any(a < b for a, b in zip(place.shape, value.shape, strict=True)):
            raise ValueError(f"{name} is {tuple(value.shape)} and would be {tuple(place.shape)}")
        if place.shape != value.shape and name == "map_embedding.2.weight":
            place.zero_()
        place[tuple(slice(n) for n in value.shape)] = value
    return network


def train(
    options: Options, vae: VAE, tower: TextTower, tokenizer: Tokenizer, network: UNet
) -> Path:
    """Run the loop, going on from what was saved; returns the path of the state.

    network: where a new run begins.
    """
    given = Pool(options.pools, tokenizer)
    held = Pool([options.held], tokenizer)
    empty = encode(tower, tokenizer, [""], words=True)
    wanted = encode(tower, tokenizer, PROMPTS, words=True)
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
        del state
    say(
        f"diffusion: {sum(p.numel() for p in parameters) / 1e6:.1f} M parameters, {len(given)} scenes"
    )
    report = Report("diffusion", options.steps, first, every=100)
    ask = torch.compile(network, dynamic=False) if options.compiled else network
    average: float | Tensor = 1.0
    device = torch.device("cpu")
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(options, step)
        rng, generator = rng_of(options.seed, step), generator_of(options.seed, step, 100)
        index = given.choose(rng, options.batch, options.single_share[step >= options.single_first])
        dropped = torch.from_numpy(rng.random(options.batch) < options.drop)
        latents, cond = given.batch(index, dropped, empty)
        u = (torch.randn(options.batch, generator=generator) + options.noise_mean).sigmoid()
        eps = torch.randn(latents.shape, generator=generator)
        maps: list[Tensor] = []
        placed = options.token_loss > 0 and step % options.token_every == 0
        looking = partial(ask, record=maps) if placed else ask
        with autocast(device):
            loss = training_loss(
                looking, latents, cond, SCHEDULE, PREDICTION, u * SCHEDULE.T, eps
            ).mean()
        average = 0.99 * average + 0.01 * loss.detach()
        if placed:
            columns = given.columns[index] & ~dropped[:, None, None]
            loss = loss + options.token_loss * token_loss(maps, columns, given.boxes[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % options.ema_every == 0:
            ema.update(network)
        report(step, options.batch, loss=average)
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            whole = {
                "model": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": ema.weights,
                "updates": ema.updates,
                "step": step + 1,
                "config": asdict(network.config),
            }
            save_state(path, whole)
        if (step + 1) % options.sample_every == 0:
            with ema.applied(network):
                one = validation_loss(network, held, held.single[:128], empty)
                more = validation_loss(network, held, held.several[:128], empty)
                say(f"  step {step + 1}: validation loss single {one:.4f}, several {more:.4f}")
                place = options.out / "samples" / f"{step + 1:06d}.png"
                sheet(network, vae, wanted, empty, place)
    return path
