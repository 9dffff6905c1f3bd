"""Train the diffusion model: a U-Net that tells noise from picture, given the text.

The autoencoder and CLIP are trained already and do not change, so the latents of a pool of
pictures and the embeddings of their captions are computed once and kept. One process trains; with
``processes=2`` two of them share the batch, one thread each, and average their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pellucid import checkpoints, noise
from pellucid.backbones.unet import UNet, UNetConfig, init_for_training
from pellucid.clip import CLIP
from pellucid.conditioning import encode_captions
from pellucid.data.emoji import Mix, Place, compose, core_concepts
from pellucid.data.imagefolder import Folder
from pellucid.diffusion import Conditioning, predictor, sample_t, training_loss
from pellucid.guidance import ClassifierFree, as_denoiser
from pellucid.images.metadata import save_image
from pellucid.images.pixels import grid, to_pil
from pellucid.samplers import ddim
from pellucid.schedule import Schedule
from pellucid.tokenizer import Tokenizer
from pellucid.train import clip as train_clip
from pellucid.train import pictures, token_loss
from pellucid.train import vae as train_vae
from pellucid.train.loop import (
    Ema,
    Report,
    autocast,
    average_gradients,
    check,
    device_of,
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
POOL_MIX = Mix(tinted=0.3, on_color=0.2, pair=0.2, play=0.2, styled=0.7)


def emoji_unet(
    latent_channels: int,
    text_width: int,
    pooled: int,
    map_size: int = 8,
    channels: tuple[int, ...] = (96, 192),
) -> UNetConfig:
    """The network of the embedded model; `map_size` is the side of the latents."""
    return UNetConfig(
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        layers_per_block=1,
        # No attention at full size; below it, heads of 32 channels.
        transformer_layers=(0,) + (1,) * (len(channels) - 1),
        mid_transformer_layers=1,
        heads=(1, *(c // 32 for c in channels[1:])),
        cross_attention_dim=text_width,
        use_linear_projection=True,
        norm_groups=16,
        pooled_dim=pooled,
        map_channels=32,
        map_size=map_size,
        film=True,
    )


def channels_of(text: str) -> tuple[int, ...]:
    """ "96,192" -> (96, 192). ValueError if it does not say the widths of two or more levels."""
    parts = text.split(",")
    if not all(p.strip().isdecimal() for p in parts) or len(parts) < 2:
        raise ValueError(f"channels is {text!r}; a number for each level is wanted, such as 96,192")
    channels = tuple(int(p) for p in parts)
    if any(c == 0 or c % 32 for c in channels):
        raise ValueError(f"channels is {text!r}; multiples of 32 are wanted, such as 96,192")
    return channels


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
    token_loss: float = 0.02
    """Weight of the loss that asks the words for a thing to look where it is; 0: without it."""
    ema: float = 0.998
    decay_from: float = 0.6
    start: str = ""
    """A model file whose network is trained further; "" begins from nothing. `channels` is its own."""
    compiled: bool = False
    """Run the network through torch.compile: needs a C++ compiler on a CPU, and is faster."""
    core: bool = True
    """Learn the core concepts only, which is what a CPU has time for."""
    channels: str = "96,192"
    """Width of the U-Net at each of its levels, from the largest; multiples of 32."""
    processes: int = 1
    save_every: int = 500
    """Steps between two saves of the whole state."""
    sample_every: int = -1
    """Steps between two sheets of samples, OUT/samples/STEP.png; 0: none; -1: at each save, when
    the validation loss is measured."""
    data: str = ""
    """A folder of pictures with captions to learn from in place of the art."""
    size: int = 64
    """What a folder's pictures are scaled to; the art has a size of its own."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1, mps."""
    seed: int = 0
    resume: bool = False


class Pool(NamedTuple):
    """Latents, caption embeddings and the places of things, computed once."""

    latents: Tensor  # (N, C, h, w) float16
    tokens: Tensor  # (N, L, D) float16
    pooled: Tensor  # (N, P) float16
    columns: Tensor  # (N, MOST, L) bool, the tokens that name a thing whose place is known
    boxes: Tensor  # (N, MOST, 4), that place
    empty_tokens: Tensor  # (1, L, D), of the empty caption
    empty_pooled: Tensor  # (1, P)

    @property
    def empty(self) -> Conditioning:
        return Conditioning(self.empty_tokens, self.empty_pooled)

    def to(self, device: torch.device) -> Pool:
        """The same on another device, where batches are then made."""
        return Pool(*(x.to(device) for x in self))

    def batch(self, index: Tensor, dropped: Tensor) -> tuple[Tensor, Conditioning]:
        """Latents (B, C, h, w) and conditioning, float32; `dropped` (B,) bool have no caption."""
        index, dropped = index.to(self.latents.device), dropped.to(self.latents.device)
        tokens = torch.where(dropped[:, None, None], self.empty_tokens, self.tokens[index].float())
        pooled = torch.where(dropped[:, None], self.empty_pooled, self.pooled[index].float())
        return self.latents[index].float(), Conditioning(tokens, pooled)

    def places(self, index: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
        """Columns (B, MOST, L) and boxes (B, MOST, 4) for `token_loss`; none of what is dropped."""
        index, dropped = index.to(self.latents.device), dropped.to(self.latents.device)
        return self.columns[index] & ~dropped[:, None, None], self.boxes[index]


@torch.no_grad()
def make_pool(
    source: pictures.Source,
    vae: VAE,
    clip: CLIP,
    tokenizer: Tokenizer,
    count: int,
    mix: Mix,
    seed: int,
    held: bool = False,
    among: Sequence[int] | None = None,
) -> Pool:
    """Draw `count` pictures, encode them and their captions where the networks are; on the CPU.

    A folder's pool is all of its pictures, as they are and mirrored.
    """
    if isinstance(source, Folder):
        index = source.split(held)
        count = 2 * len(index)
    latents, tokens, pooled, columns, boxes = [], [], [], [], []
    device = next(vae.parameters()).device
    for start in range(0, count, 250):
        many, rng = min(250, count - start), rng_of(seed, start, 3)
        if isinstance(source, Folder):
            chosen = range(start, start + many)
            drawn = [source.pixels[index[i // 2]] for i in chosen]
            drawn = [p[:, ::-1].copy() if i % 2 else p for i, p in zip(chosen, drawn, strict=True)]
            pixels = pictures.to_pixels(drawn)
            captions = [source.captions[index[i // 2]] for i in chosen]
            places: list[tuple[Place, ...]] = [()] * many
        else:
            samples = [compose(source, rng, mix, held=held, among=among) for _ in range(many)]
            pixels = pictures.to_pixels([s.pixels for s in samples])
            captions, places = [s.caption for s in samples], [s.places for s in samples]
        latents.append(vae.to_latents(pixels.to(device)).half().cpu())
        cond = encode_captions(clip.text, tokenizer, captions, words=True)
        assert cond.pooled is not None
        tokens.append(cond.tokens.half().cpu())
        pooled.append(cond.pooled.half().cpu())
        for caption, where in zip(captions, places, strict=True):
            columns.append(token_loss.columns(tokenizer, caption, where))
            boxes.append(token_loss.boxes(where))
    empty = encode_captions(clip.text, tokenizer, [""], words=True).to("cpu")
    assert empty.pooled is not None
    return Pool(
        torch.cat(latents),
        torch.cat(tokens),
        torch.cat(pooled),
        torch.stack(columns),
        torch.stack(boxes),
        empty.tokens,
        empty.pooled,
    )


def chosen_concepts(options: DiffusionOptions, source: pictures.Source) -> list[int] | None:
    """The concepts that this run learns; None is all, as of art that has no core concepts."""
    if not options.core or isinstance(source, Folder):
        return None
    return core_concepts(source) or None


def kept_pool(
    options: DiffusionOptions, source: pictures.Source, vae: VAE, clip: CLIP, tokenizer: Tokenizer
) -> Pool:
    """The pool of this run: read back if it was made from the same parts, else made and kept."""
    path = options.out / "pool.pt"
    among = chosen_concepts(options, source)
    made_of = [
        "words and places",
        str(options.pool),
        str(options.seed),
        repr(POOL_MIX),
        repr(among),
    ]
    parts = [options.vae, options.clip]
    if isinstance(source, Folder):
        made_of += [str(source.size), repr(source.captions)]
        parts.insert(0, Path(options.data))
    else:
        parts.insert(0, options.art)
    made_of += [str(p.stat().st_mtime_ns) for p in parts]
    if (state := load_state(path)) and state["made_of"] == made_of:
        return Pool(*(state[name] for name in Pool._fields))
    say("encoding pictures and captions")
    pool = make_pool(
        source, vae, clip, tokenizer, options.pool, POOL_MIX, options.seed, among=among
    )
    save_state(path, pool._asdict() | {"made_of": made_of})
    return pool


@torch.no_grad()
def validation_loss(network: nn.Module, pool: Pool) -> float:
    """Mean loss over held-out pictures at eight fixed times with fixed noise."""
    count, times = min(128, len(pool.latents)), 8
    latents, cond = pool.batch(torch.arange(count), torch.zeros(count, dtype=torch.bool))
    eps = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    t = (torch.arange(count) % times + 0.5) / times * EMOJI_SCHEDULE.T
    eps, t = eps.to(latents.device), t.to(latents.device)
    with autocast(latents.device):
        losses = training_loss(network, latents, cond, EMOJI_SCHEDULE, EMOJI_PREDICTION, t, eps)
    return float(losses.mean())


@torch.no_grad()
def draw_samples(
    network: nn.Module, vae: VAE, wanted: Conditioning, empty: Conditioning, side: int, path: Path
) -> None:
    """A sheet of what the network draws by now: fixed prompts, seeds 0, 1, ..., 12 DDIM steps."""
    device = next(network.parameters()).device
    seeds = noise.generators(0, len(wanted))
    x = noise.draw("gaussian", (vae.config.latent_channels, side, side), seeds).to(device)
    guided = ClassifierFree(predictor(network, EMOJI_PREDICTION), wanted, empty, 4.0)
    levels = EMOJI_SCHEDULE.levels(12, "uniform")
    *_, last = ddim.sample(as_denoiser(guided), x * levels[0].sigma, levels, noise.source(seeds))
    drawn = [to_pil(p) for p in vae.to_pixels(last.x)]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(grid(drawn, 4), path)


def first_network(options: DiffusionOptions, config: UNetConfig) -> UNet:
    """The network that a run begins with: a new one, or that of the model `options.start`.

    ValueError if the model's network has other inputs than the run's latents and text.
    """
    if not options.start:
        network = UNet(config)
        init_for_training(network)
        return network
    kept = checkpoints.load(options.start).backbone
    same = isinstance(kept, UNet) and all(
        getattr(kept.config, name) == getattr(config, name)
        for name in ("in_channels", "cross_attention_dim", "pooled_dim", "map_size")
    )
    if not isinstance(kept, UNet) or not same:
        raise ValueError(
            f"start is {options.start}, whose network does not fit these latents "
            f"({config.in_channels} channels, {config.map_size} wide) and this text "
            f"({config.cross_attention_dim} wide)"
        )
    return kept.train()


def run(
    rank: int, options: DiffusionOptions, pool: Pool, held: Pool, vae: VAE, wanted: Conditioning
) -> None:
    """One process of the run. `wanted`: the prompts of the samples."""
    world, device = options.processes, device_of(options.device)
    if world > 1:
        torch.set_num_threads(1)
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{(options.out / 'rendezvous').resolve()}",
            rank=rank,
            world_size=world,
        )
    torch.manual_seed(options.seed)
    _, latent_channels, side, _ = pool.latents.shape
    wanted_shape = emoji_unet(
        latent_channels,
        pool.tokens.shape[-1],
        pool.pooled.shape[-1],
        side,
        channels_of(options.channels),
    )
    network = first_network(options, wanted_shape)
    config = network.config
    pool, held, wanted = pool.to(device), held.to(device), wanted.to(device)
    vae.to(device)
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(
        parameters, options.rate, (0.9, 0.99), weight_decay=0.01, fused=True
    )
    ema = Ema(network, options.ema)
    path, first = options.out / "state.pt", 0
    if options.resume and (state := load_state(path)):
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.restore(state["ema"], state["updates"])
        first = state["step"]
    report = Report("diffusion", options.steps, first, every=100, quiet=rank > 0)
    ask = torch.compile(network) if options.compiled else network
    average: float | Tensor = 1.0
    placed = options.token_loss > 0 and bool(pool.columns.any())
    sample_every = options.save_every if options.sample_every < 0 else options.sample_every
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
        t, eps = t.to(device), eps.to(device)
        maps: list[Tensor] = []
        looking = partial(ask, record=maps) if placed else ask
        with autocast(device):
            loss = training_loss(
                looking, latents, cond, EMOJI_SCHEDULE, EMOJI_PREDICTION, t, eps
            ).mean()
        if placed:
            columns, boxes = pool.places(index, dropped)
            loss = loss + options.token_loss * token_loss.token_loss(maps, columns, boxes)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(parameters, world)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average = 0.99 * average + 0.01 * loss.detach()  # not read here: a GPU would wait
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
                        "config": asdict(config),
                    },
                )
                with ema.applied(network):
                    say(f"  validation loss {validation_loss(network, held):.4f}")
            last = step + 1 == options.steps
            if sample_every > 0 and ((step + 1) % sample_every == 0 or last):
                sheet = options.out / "samples" / f"{step + 1:06d}.png"
                with ema.applied(network):
                    draw_samples(network, vae, wanted, held.empty, side, sheet)
    if world > 1:
        torch.distributed.destroy_process_group()


def train(options: DiffusionOptions) -> Path:
    """Run the loop in one or more processes; returns the path of the saved state.

    A killed or interrupted run leaves the state of its last save; with ``resume`` it goes on from
    there, bit for bit as if unbroken (on a CPU, with the same options and number of threads). A run
    that has done its steps already is only finished off.
    """
    check(options)
    device = device_of(options.device)
    channels_of(options.channels)  # a mistake there is told before the work begins
    if options.processes > 1 and device.type != "cpu":
        raise ValueError(f"processes is {options.processes}; on {device} only 1 is possible")
    source = pictures.load(options.art, options.data, options.size)
    vae = train_vae.trained(options.vae).to(device)
    clip, tokenizer = train_clip.trained(options.clip)
    clip.to(device)
    options.out.mkdir(parents=True, exist_ok=True)
    pool = kept_pool(options, source, vae, clip, tokenizer)
    among = chosen_concepts(options, source)
    held = make_pool(source, vae, clip, tokenizer, 128, POOL_MIX, options.seed + 1, True, among)
    with torch.no_grad():
        wanted = encode_captions(clip.text, tokenizer, pictures.prompts(source, 16), words=True)
    (options.out / "rendezvous").unlink(missing_ok=True)
    if options.processes == 1:
        run(0, options, pool, held, vae, wanted)
    else:
        for tensor in pool:
            tensor.share_memory_()
        torch.multiprocessing.spawn(
            run, (options, pool, held, vae, wanted), nprocs=options.processes
        )
    return options.out / "state.pt"
