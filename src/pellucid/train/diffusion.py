"""Train the diffusion model: a U-Net that tells noise from picture, given the text.

The autoencoder and CLIP are trained already and do not change, so the latents of a pool of
pictures and the embeddings of their captions are computed once and kept. One process trains; with
``processes=2`` two of them share the batch, one thread each, and average their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pellucid.backbones.unet import UNet, UNetConfig, init_for_training
from pellucid.clip import CLIP
from pellucid.data.emoji import EmojiArt, Mix, compose, core_concepts
from pellucid.diffusion import Conditioning, sample_t, training_loss
from pellucid.prompt import encode
from pellucid.schedule import Schedule
from pellucid.tokenizer import Tokenizer
from pellucid.train import clip as train_clip
from pellucid.train import vae as train_vae
from pellucid.train.loop import (
    Ema,
    Report,
    average_gradients,
    generator_of,
    learning_rate,
    load_state,
    rng_of,
    save_state,
    say,
)
from pellucid.vae import VAE

EMOJI_SCHEDULE = Schedule("flow")
EMOJI_PREDICTION = "flow"
POOL_MIX = Mix(tinted=0.12, on_color=0.1, pair=0.04, play=0.05)


def emoji_unet(latent_channels: int, text_width: int, pooled: int) -> UNetConfig:
    """The network of the embedded model, for 8x8 latents."""
    return UNetConfig(
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(96, 192),
        layers_per_block=1,
        transformer_layers=(0, 1),
        mid_transformer_layers=1,
        heads=(1, 6),
        cross_attention_dim=text_width,
        use_linear_projection=True,
        norm_groups=16,
        pooled_dim=pooled,
        map_channels=32,
        map_size=8,
    )


@dataclass(frozen=True)
class DiffusionOptions:
    """Options of ``pellucid train diffusion``."""

    art: Path = Path("runs/art64.npz")
    vae: Path = Path("runs/vae/vae.pt")
    clip: Path = Path("runs/clip/state.pt")
    out: Path = Path("runs/diffusion")
    steps: int = 6000
    batch: int = 32
    """Pictures a step in each process."""
    rate: float = 1e-3
    pool: int = 20000
    """Pictures whose latents are kept."""
    drop: float = 0.1
    """Chance that a caption is replaced by the empty one, for guidance."""
    ema: float = 0.998
    decay_from: float = 0.6
    core: bool = True
    """Learn the core concepts only, which is what a CPU has time for."""
    processes: int = 1
    save_every: int = 500
    """Steps between two saves of the whole state."""
    seed: int = 0
    resume: bool = False


@dataclass
class Pool:
    """Latents and caption embeddings, computed once."""

    latents: Tensor  # (N, C, h, w) float16
    tokens: Tensor  # (N, L, D) float16
    pooled: Tensor  # (N, P) float16
    empty: Conditioning  # of the empty caption, (1, L, D)

    def batch(self, index: Tensor, dropped: Tensor) -> tuple[Tensor, Conditioning]:
        """Latents (B, C, h, w) and conditioning, float32; `dropped` (B,) bool have no caption."""
        assert self.empty.pooled is not None
        tokens = torch.where(dropped[:, None, None], self.empty.tokens, self.tokens[index].float())
        pooled = torch.where(dropped[:, None], self.empty.pooled, self.pooled[index].float())
        return self.latents[index].float(), Conditioning(tokens, pooled)


@torch.no_grad()
def make_pool(
    art: EmojiArt,
    vae: VAE,
    clip: CLIP,
    tokenizer: Tokenizer,
    count: int,
    mix: Mix,
    seed: int,
    held: bool = False,
    among: Sequence[int] | None = None,
) -> Pool:
    """Draw `count` pictures, encode them and their captions."""
    latents, tokens, pooled = [], [], []
    for start in range(0, count, 250):
        rng = rng_of(seed, start, 3)
        samples = [
            compose(art, rng, mix, held=held, among=among) for _ in range(min(250, count - start))
        ]
        pixels = torch.stack([torch.from_numpy(s.pixels) for s in samples])
        latents.append(vae.to_latents(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).half())
        cond = encode(clip.text, tokenizer, [s.caption for s in samples])
        assert cond.pooled is not None
        tokens.append(cond.tokens.half())
        pooled.append(cond.pooled.half())
    empty = encode(clip.text, tokenizer, [""])
    return Pool(torch.cat(latents), torch.cat(tokens), torch.cat(pooled), empty)


def kept_pool(
    options: DiffusionOptions, art: EmojiArt, vae: VAE, clip: CLIP, tokenizer: Tokenizer
) -> Pool:
    """The pool of this run: read back if it was made from the same parts, else made and kept."""
    path = options.out / "pool.pt"
    among = core_concepts(art) if options.core else None
    made_of = [str(options.pool), str(options.seed), repr(POOL_MIX), repr(among)]
    made_of += [str(p.stat().st_mtime_ns) for p in (options.art, options.vae, options.clip)]
    with torch.no_grad():
        empty = encode(clip.text, tokenizer, [""])
    if (state := load_state(path)) and state["made_of"] == made_of:
        return Pool(state["latents"], state["tokens"], state["pooled"], empty)
    say(f"encoding {options.pool} pictures and captions")
    pool = make_pool(art, vae, clip, tokenizer, options.pool, POOL_MIX, options.seed, among=among)
    tensors = {"latents": pool.latents, "tokens": pool.tokens, "pooled": pool.pooled}
    save_state(path, tensors | {"made_of": made_of})
    return pool


@torch.no_grad()
def validation_loss(network: nn.Module, pool: Pool) -> float:
    """Mean loss over held-out pictures at eight fixed times with fixed noise."""
    count, times = 128, 8
    latents, cond = pool.batch(torch.arange(count), torch.zeros(count, dtype=torch.bool))
    eps = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    t = (torch.arange(count) % times + 0.5) / times * EMOJI_SCHEDULE.T
    return float(
        training_loss(network, latents, cond, EMOJI_SCHEDULE, EMOJI_PREDICTION, t, eps).mean()
    )


def run(rank: int, options: DiffusionOptions, pool: Pool, held: Pool) -> None:
    """One process of the run."""
    world = options.processes
    if world > 1:
        torch.set_num_threads(1)
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{(options.out / 'rendezvous').resolve()}",
            rank=rank,
            world_size=world,
        )
    torch.manual_seed(options.seed)
    assert held.empty.pooled is not None
    network = UNet(emoji_unet(pool.latents.shape[1], pool.tokens.shape[-1], pool.pooled.shape[-1]))
    init_for_training(network)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(
        parameters, options.rate, (0.9, 0.99), weight_decay=0.01, fused=True
    )
    ema = Ema(network, options.ema)
    path, first = options.out / "state.pt", 0
    if options.resume and (state := load_state(path)):
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.weights, ema.updates, first = state["ema"], state["updates"], state["step"]
    report = Report("diffusion", options.steps, first, every=100, quiet=rank > 0)
    average = 1.0
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.rate, 150, options.decay_from)
        rng = rng_of(options.seed, step, rank)
        generator = generator_of(options.seed, step, rank + 100)
        index = torch.from_numpy(rng.integers(len(pool.latents), size=options.batch))
        dropped = torch.from_numpy(rng.random(options.batch) < options.drop)
        latents, cond = pool.batch(index, dropped)
        t = sample_t("logit_normal", options.batch, EMOJI_SCHEDULE.T, generator)
        eps = torch.randn(latents.shape, generator=generator)
        loss = training_loss(
            network, latents, cond, EMOJI_SCHEDULE, EMOJI_PREDICTION, t, eps
        ).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(parameters, world)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average = 0.99 * average + 0.01 * float(loss.detach())
        if rank == 0:
            ema.update(network)
            report(step, options.batch * world, loss=average)
            if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
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
                current = {k: v.clone() for k, v in network.state_dict().items()}
                network.load_state_dict(ema.weights)
                say(f"  validation loss {validation_loss(network, held):.4f}")
                network.load_state_dict(current)
    if world > 1:
        torch.distributed.destroy_process_group()


def train(options: DiffusionOptions) -> Path:
    """Run the loop in one or more processes; returns the path of the saved state.

    A killed or interrupted run leaves the state of its last save; with ``resume`` it goes on from
    there, bit for bit as if unbroken (on a CPU, with the same options and number of threads). A run
    that has done its steps already is only finished off.
    """
    art = EmojiArt.load(options.art)
    vae = train_vae.trained(options.vae)
    clip, tokenizer = train_clip.trained(options.clip, art.size)
    options.out.mkdir(parents=True, exist_ok=True)
    pool = kept_pool(options, art, vae, clip, tokenizer)
    among = core_concepts(art) if options.core else None
    held = make_pool(art, vae, clip, tokenizer, 128, POOL_MIX, options.seed + 1, True, among)
    (options.out / "rendezvous").unlink(missing_ok=True)
    if options.processes == 1:
        run(0, options, pool, held)
    else:
        for tensor in (pool.latents, pool.tokens, pool.pooled):
            tensor.share_memory_()
        torch.multiprocessing.spawn(run, (options, pool, held), nprocs=options.processes)
    return options.out / "state.pt"
