"""Train a diffusion model: a U-Net that separates noise from picture, given the text.

The autoencoder and CLIP are trained already and do not change, so the latents of a pool of
pictures and the vectors of their captions are computed once and kept. One process trains; with
``processes=2`` two of them share the batch, one thread each, and average their gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pellucid import checkpoints, data, noise
from pellucid.backbones.unet import UNet, UNetConfig, init_for_training
from pellucid.data import SourceOptions, setting
from pellucid.diffusion import Conditioning, Network, predictor
from pellucid.guidance import ClassifierFree, as_denoiser
from pellucid.images.metadata import save_image
from pellucid.images.pixels import grid, to_pil
from pellucid.samplers import ddim
from pellucid.train import loop, pack, small_pictures, token_loss
from pellucid.train.objective import Objective, ObjectiveOptions
from pellucid.train.pool import Encoders, Pool
from pellucid.train.recipe import Recipe
from pellucid.vae import VAE

HELD = 128
"""Pictures of a source that composes them on which the validation loss is measured."""
PROMPTS = 16  # on a sheet of samples


@dataclass(frozen=True)
class DiffusionOptions(ObjectiveOptions, SourceOptions, loop.RunOptions):
    """Options of ``pellucid train diffusion``."""

    vae: Path = setting(Path("runs/vae/vae.pt"), "The trained autoencoder.")
    clip: Path = setting(Path("runs/clip/state.pt"), "The trained CLIP.")
    out: Path = setting(
        Path("runs/diffusion"),
        "A folder for the state of the run, its pool, its samples and the model.",
    )
    _: KW_ONLY
    steps: int = setting(6000, loop.STEPS)
    batch: int = setting(32, "Pictures in each update, of each process.")
    pool: int = setting(
        20000, "Pictures whose latents are kept, of a source that composes them; else all."
    )
    drop: float = setting(0.1, "Chance that a caption is replaced by the empty one, for guidance.")
    token_loss: float = setting(
        0.02,
        "Weight of the loss that asks the attention of a thing's words to be where that thing is; "
        "0: without it.",
    )
    ema: float = setting(0.998, "Decay of the moving average of the weights.")
    decay_from: float = setting(
        0.6, "Fraction of the run at which the learning rate begins to fall."
    )
    start: str = setting(
        "",
        'A model file whose network is trained further; "" is a new network. `channels` is then '
        "that network's, and with `grow` they must be the same.",
    )
    grow: bool = setting(
        False,
        "Add to the network of `start` what the recipe's has in addition: attention at more levels, "
        "a wider map. It computes the same at first.",
    )
    compiled: bool = setting(
        False, "Run the network through torch.compile: faster, needs a C++ compiler on a CPU."
    )
    core: bool = setting(True, "Of the art, learn only the core concepts: enough for a CPU.")
    channels: str = setting(
        "96,192", "Width of the U-Net at each of its levels, from the largest; multiples of 32."
    )
    processes: int = setting(1, "Processes that share the work, on a CPU.")
    sample_every: int = setting(
        -1,
        "Steps between two sheets of samples, OUT/samples/STEP.png; 0: none; -1: at each save, "
        "when the validation loss is measured.",
    )


def train(options: DiffusionOptions, recipe: Recipe, say: loop.Say = loop.silent) -> Path:
    """Run the loop in one or more processes; returns the path of the model, OUT/model.safetensors.

    It is packed from the autoencoder, CLIP and the network, and can be drawn with.
    """
    # Mistakes in the options are found before the work begins.
    device, objective = loop.device_of(options.device), options.objective()
    config = recipe.unet(channels_of(options.channels))
    if options.processes > 1 and device.type != "cpu":
        raise ValueError(f"processes must be 1 on {device}, got {options.processes}")
    source = data.load(options, recipe.mixes["diffusion"], recipe.multiple)
    encoders = Encoders(options.vae, options.clip, device)
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "pool.pt"
    pool = encoders.cached_pool(kept, source, options.pool, options.seed, say)
    held = encoders.pool(source, HELD, options.seed + 1, held=True)
    config = replace(
        config,
        in_channels=pool.latents.shape[1],
        out_channels=pool.latents.shape[1],
        cross_attention_dim=pool.tokens.shape[-1],
        pooled_dim=pool.pooled.shape[-1],
        map_size=pool.latents.shape[-1],
    )
    if not pool.columns.any():  # no box of anything is known
        options = replace(options, token_loss=0.0)
    prompts = encoders.text(source.prompts(PROMPTS))
    (options.out / "rendezvous").unlink(missing_ok=True)
    inputs = RunInputs(options, objective, config, pool, held, encoders.vae, prompts)
    if options.processes == 1:
        learn(0, inputs, say)
    else:
        for tensor in pool:
            tensor.share_memory_()
        torch.multiprocessing.spawn(learn, (inputs, say), nprocs=options.processes)
    parts = pack.PackOptions(
        vae=options.vae,
        clip=options.clip,
        diffusion=options.out / "state.pt",
        out=options.out / "model.safetensors",
        name=options.out.resolve().name,
    )
    return pack.train(parts, recipe)


class RunInputs(NamedTuple):
    """What each process of a run gets. prompts: those of the samples."""

    options: DiffusionOptions
    objective: Objective
    config: UNetConfig
    pool: Pool
    held: Pool
    vae: VAE
    prompts: Conditioning


def learn(rank: int, inputs: RunInputs, say: loop.Say) -> None:
    """One process of the run."""
    options, objective, config, pool, held, vae, prompts = inputs
    world, device = options.processes, loop.device_of(options.device)
    if world > 1:
        torch.set_num_threads(1)
        meeting = f"file://{(options.out / 'rendezvous').resolve()}"
        torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=world)
    torch.manual_seed(options.seed)
    network = first_network(options, config)
    pool, held, prompts = pool.to(device), held.to(device), prompts.to(device)
    vae.to(device)
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not options.compiled:
        small_pictures.prepare(network)
    optimizer = torch.optim.AdamW(
        network.parameters(), options.rate, (0.9, 0.99), weight_decay=0.01, fused=True
    )
    ema = loop.Ema(network, options.ema)
    parts: dict[str, loop.Stateful] = {"model": network, "optimizer": optimizer}
    facts = {"config": asdict(network.config), "made_of": repr(objective)}
    facts |= {"schedule": asdict(objective.schedule), "prediction": objective.prediction}
    saved = loop.Saved(options.out / "state.pt", parts, ema, facts)
    run = loop.Run("diffusion", options, saved, say, every=100, process=loop.Process(rank, world))
    callable_network = torch.compile(network) if options.compiled else network
    average: float | Tensor = 1.0
    for step in run.steps(optimizer, warmup=150, decay_from=options.decay_from):
        loss = loss_of_step(callable_network, options, objective, pool, (step, rank))
        run.update(optimizer, loss)
        average = 0.99 * average + 0.01 * loss.detach()  # not read here: a GPU would wait
        run.report(loss=average)
        if run.save_if_due():
            with ema.applied():
                say(f"  validation loss {validation_loss(network, objective, held):.4f}")
        if run.due(options.sample_every):
            sheet = options.out / "samples" / f"{step + 1:06d}.png"
            with ema.applied():
                draw_samples(network, vae, prompts, held, objective, sheet)
    if world > 1:
        torch.distributed.destroy_process_group()


def loss_of_step(
    network: Callable[..., Tensor],
    options: DiffusionOptions,
    objective: Objective,
    pool: Pool,
    key: tuple[int, int],
) -> Tensor:
    """The loss of a batch, scalar. `key`: the step and the process, which give the randomness."""
    step, rank = key
    rng = loop.rng_of(options.seed, step, rank)
    generator = loop.generator_of(options.seed, step, rank + 100)
    index = torch.from_numpy(rng.integers(len(pool.latents), size=options.batch))
    dropped = torch.from_numpy(rng.random(options.batch) < options.drop)
    latents, cond = pool.batch(index, dropped)
    if options.token_loss == 0:
        return objective.loss(network, latents, cond, generator)
    maps: list[Tensor] = []
    loss = objective.loss(partial(network, record=maps), latents, cond, generator)
    return loss + options.token_loss * token_loss.token_loss(maps, *pool.grounding(index, dropped))


def validation_loss(network: Network, objective: Objective, held: Pool) -> float:
    """Mean loss over held-out pictures with their captions."""
    index = torch.arange(min(HELD, len(held.latents)))
    latents, cond = held.batch(index, torch.zeros(len(index), dtype=torch.bool))
    return objective.validation_loss(network, latents, cond)


def channels_of(text: str) -> tuple[int, ...]:
    """ "96,192" -> (96, 192). ValueError if it does not give the widths of two or more levels."""
    parts = text.split(",")
    if not all(p.strip().isdecimal() for p in parts) or len(parts) < 2:
        raise ValueError(f"channels must be a number for each level, such as 96,192, got {text!r}")
    return tuple(int(p) for p in parts)


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
    if options.grow:
        widths = ",".join(map(str, kept.config.block_out_channels))
        if kept.config.block_out_channels != config.block_out_channels:
            raise ValueError(
                f"channels must be {widths}, those of the network that grows, "
                f"got {options.channels}"
            )
        more = {
            name: getattr(config, name) for name in ("transformer_layers", "heads", "map_width")
        }
        kept = grown(kept, replace(kept.config, **more))
    return kept.train()


@torch.no_grad()
def grown(old: UNet, config: UNetConfig) -> UNet:
    """A network of `config` that computes what `old` computes, and has more to learn with.

    As Net2Net (Chen et al. 2015, arXiv:1511.05641): new attention ends in a zero, and further hidden
    units of the map's MLP have no effect yet. ValueError if something of `old` would be lost.
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


@torch.no_grad()
def draw_samples(
    network: UNet,
    vae: VAE,
    prompts: Conditioning,
    held: Pool,
    objective: Objective,
    path: Path,
) -> None:
    """Writes a sheet of samples: fixed prompts, seeds 0, 1, ..., 12 DDIM steps."""
    device = next(network.parameters()).device
    seeds = noise.generators(0, len(prompts))
    x = noise.draw("gaussian", tuple(held.latents.shape[1:]), seeds).to(device)
    predict = predictor(network, objective.prediction)
    guided = ClassifierFree(predict, prompts, held.empty, 4.0)
    levels = objective.schedule.levels(12, "uniform")
    x = x * levels[0].sigma
    *_, last = ddim.sample(as_denoiser(guided), x, levels, noise.source(seeds))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(grid([to_pil(p) for p in vae.to_pixels(last.x)], 4), path)
