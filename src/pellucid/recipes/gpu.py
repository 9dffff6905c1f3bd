"""The diffusion network on a GPU that is lent for minutes, not hours.

All that is needed travels in two files: the art at 64 pixels (``art64.npz``, 7 MB) and the model to
begin with. The pool of scenes is drawn there by all cores, encoded on the GPU and stays in its
memory. The run is told how many seconds it has; the learning rate falls with them, so it is always
finished. What comes back is written in pieces of at most `PIECE` bytes, in half precision.

A second run may go on from the pieces of the first; its optimizer begins anew, with a warm-up.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pellucid import checkpoints
from pellucid.backbones.unet import UNet, UNetConfig
from pellucid.conditioning import encode
from pellucid.data import scenes
from pellucid.data.emoji import EmojiArt
from pellucid.diffusion import Conditioning, training_loss
from pellucid.recipes import art as recipe_art
from pellucid.recipes import diffusion, pool
from pellucid.train.loop import Ema, autocast, device_of, rng_of, say
from pellucid.train.token_loss import token_loss

PIECE = 15_000_000


@dataclass(frozen=True)
class Options:
    art: Path
    model: Path
    """The model whose autoencoder and text tower are used, and whose network is the start."""
    out: Path
    start: Path | None = None
    """A folder with the pieces of an earlier run, to go on from."""
    seconds: float = 420.0
    """For the training alone; drawing and encoding the pool comes before."""
    pool: int = 200_000
    batch: int = 1024
    rate: float = 1.2e-3
    warmup: int = 200
    decay_from: float = 0.5
    drop: float = 0.1
    token_loss: float = 0.02
    single: float = 0.55
    """Share of pictures with one thing."""
    noise_mean: float = 0.2
    ema: float = 0.999
    mix: scenes.SceneMix = field(default_factory=lambda: scenes.SceneMix(play=0.4, mirror=0.3))
    device: str = "auto"
    seed: int = 0


def _draw(
    job: tuple[int, int], art: EmojiArt, options: Options, among: Sequence[int]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Some scenes of the pool, in a process of its own."""
    first, count = job
    drawn, told = [], []
    for i in range(first, first + count):
        scene = scenes.plan(art, rng_of(options.seed, i, 3), options.mix, among=among)
        drawn.append(scenes.draw(art, scene, art.size))
        told.append(pool.told(scene))
    return np.stack(drawn), told


def draw_pool(
    art: EmojiArt, options: Options, among: Sequence[int]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The scenes of the pool, by all cores: (N, size, size, 3) uint8, and what they show."""
    jobs = [(i, min(500, options.pool - i)) for i in range(0, options.pool, 500)]
    work = partial(_draw, art=art, options=options, among=among)
    with multiprocessing.get_context("fork").Pool() as workers:
        parts = workers.map(work, jobs, chunksize=1)
    return np.concatenate([p for p, _ in parts]), [s for _, told in parts for s in told]


def save_pieces(folder: Path, state: dict[str, Tensor], about: dict[str, Any]) -> list[Path]:
    """Tensors in half precision, in files of at most about `PIECE` bytes; ``about.json`` beside."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, value in state.items():
        half = value.detach().half().cpu().contiguous()
        if size + 2 * half.numel() > PIECE and pieces[-1]:
            pieces.append({})
            size = 0
        pieces[-1][name] = half
        size += 2 * half.numel()
    paths = []
    for i, piece in enumerate(pieces):
        paths.append(folder / f"network-{i}.safetensors")
        save_file(piece, paths[-1])
    (folder / "about.json").write_text(json.dumps(about))
    return paths


def load_pieces(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_pieces` wrote. ValueError if there is nothing."""
    files = sorted(folder.glob("network-*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: no pieces of a network there")
    state = {name: value.float() for f in files for name, value in load_file(f).items()}
    return state, json.loads((folder / "about.json").read_text())


def network_of(options: Options, old: UNet) -> UNet:
    """Where the run begins: the model's network, grown; or what an earlier run has left."""
    if options.start is not None:
        state, about = load_pieces(options.start)
        known: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in about["config"].items()
        }
        network = UNet(UNetConfig(**known))
        network.load_state_dict(state)
        return network
    levels = len(old.config.block_out_channels)
    heads = tuple(max(c // 32, 1) for c in old.config.block_out_channels)
    config = replace(
        old.config,
        transformer_layers=(1,) * levels,
        heads=(heads[0], *old.config.heads[1:]),
        map_width=max(1024, old.config.map_width),
    )
    return diffusion.grown(old, config)


def train(options: Options) -> list[Path]:
    """The whole run; returns the paths of the pieces."""
    began = time.monotonic()
    device = device_of(options.device)
    art = EmojiArt.load(options.art)
    known = recipe_art.learnt(art, ("core", "more"))
    core = recipe_art.learnt(art, ("core",))
    among = known + core if core else range(len(art.concepts))
    drawn, told = draw_pool(art, options, among)
    say(f"{len(drawn)} scenes drawn, {time.monotonic() - began:.0f} s")
    model = checkpoints.load(options.model)
    vae, tower = model.vae.to(device), model.text.to(device)
    latents, tokens, pooled = [], [], []
    with torch.no_grad():
        for start in range(0, len(drawn), 500):
            part = pool.to_pixels(drawn[start : start + 500]).to(device)
            latents.append(vae.to_latents(part).half())
            captions = [s["caption"] for s in told[start : start + 500]]
            cond = encode(tower, model.tokenizer, captions, words=True)
            assert cond.pooled is not None
            tokens.append(cond.tokens.half())
            pooled.append(cond.pooled.half())
        empty = encode(tower, model.tokenizer, [""], words=True).to(device)
        wanted = encode(tower, model.tokenizer, diffusion.PROMPTS, words=True).to(device)
    assert empty.pooled is not None
    all_latents, all_tokens, all_pooled = map(torch.cat, (latents, tokens, pooled))
    columns, boxes = (x.to(device) for x in diffusion.places(told, model.tokenizer))
    alone = torch.tensor([s["kind"] in diffusion.SINGLE for s in told])
    single, several = (torch.nonzero(x)[:, 0].to(device) for x in (alone, ~alone))
    say(f"encoded, {time.monotonic() - began:.0f} s")
    assert isinstance(model.backbone, UNet)
    network = network_of(options, model.backbone).train().to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(
        parameters, options.rate, (0.9, 0.99), weight_decay=0.01, fused=True
    )
    ema = Ema(network, options.ema)
    generator = torch.Generator(device).manual_seed(options.seed)
    schedule, kind = diffusion.SCHEDULE, diffusion.PREDICTION

    def some(of: Tensor, count: int) -> Tensor:
        return of[torch.randint(len(of), (count,), generator=generator, device=device)]

    began_training, step, average = time.monotonic(), 0, torch.ones((), device=device)
    count = options.batch
    ones = round(count * options.single)
    while (share := (time.monotonic() - began_training) / options.seconds) < 1:
        rate = options.rate * min((step + 1) / options.warmup, 1)
        if share > options.decay_from:
            rest = (share - options.decay_from) / (1 - options.decay_from)
            rate *= 0.5 * (1 + math.cos(math.pi * rest))
        for group in optimizer.param_groups:
            group["lr"] = rate
        index = torch.cat([some(single, ones), some(several, count - ones)])
        dropped = torch.rand(count, generator=generator, device=device) < options.drop
        cond = Conditioning(
            torch.where(dropped[:, None, None], empty.tokens, all_tokens[index].float()),
            torch.where(dropped[:, None], empty.pooled, all_pooled[index].float()),
        )
        x0 = all_latents[index].float()
        u = (torch.randn(count, generator=generator, device=device) + options.noise_mean).sigmoid()
        eps = torch.randn(x0.shape, generator=generator, device=device)
        maps: list[Tensor] = []
        placed = options.token_loss > 0 and step % 2 == 0
        looking = partial(network, record=maps) if placed else network
        with autocast(device):
            losses = training_loss(looking, x0, cond, schedule, kind, u * schedule.T, eps)
        loss = losses.mean()
        average = 0.99 * average + 0.01 * loss.detach()
        if placed:
            where = columns[index] & ~dropped[:, None, None]
            loss = loss + options.token_loss * token_loss(maps, where, boxes[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.update(network)
        step += 1
        if step % 500 == 0:
            gone = time.monotonic() - began_training
            say(f"step {step}  loss {float(average):.4f}  {gone:.0f} s of {options.seconds:.0f}")
    about = {"config": asdict(network.config), "steps": step, "batch": count}
    paths = save_pieces(options.out, ema.weights, about)
    network.load_state_dict(ema.weights)
    diffusion.sheet(network.eval(), vae, wanted, empty, options.out / "sheet.png")
    say(f"{step} steps of {count}, loss {float(average):.4f}, {time.monotonic() - began:.0f} s")
    return paths
