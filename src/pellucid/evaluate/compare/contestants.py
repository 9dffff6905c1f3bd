"""The two that are compared: how each is trained, and how each draws.

Both see the same pictures in the same order, as many of them, and every random number is a function
of the seed and the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from pellucid.diffusion import Conditioning, predictor, sample_t, training_loss
from pellucid.evaluate.compare.contest import Draw, Recipe
from pellucid.samplers import ddim
from pellucid.schedule import Schedule
from pellucid.train.gan import Players, play
from pellucid.train.loop import Ema, autocast, generator_of, learning_rate, rng_of

SCHEDULE = Schedule("flow")
PREDICTION = "flow"
CPU = torch.device("cpu")
BATCH = 256  # of samples that are drawn at once


def train_gan(
    players: Players, draw: Draw, recipe: Recipe, seed: int
) -> Iterator[dict[str, Tensor]]:
    """Train in place; yields the figures of each update: both losses, both accuracies."""
    for step in range(recipe.updates):
        real = draw(recipe.batch, rng_of(seed, step))
        yield play(players, real, None, generator_of(seed, step), half=recipe.half)


def train_denoiser(
    network: nn.Module, ema: Ema, draw: Draw, recipe: Recipe, seed: int
) -> Iterator[dict[str, Tensor]]:
    """Train in place, and the average `ema` along; yields the loss of each update."""
    optimizer = torch.optim.AdamW(
        network.parameters(), recipe.diffusion_rate, (0.9, 0.99), fused=True
    )
    for step in range(recipe.updates):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step, recipe.updates, recipe.diffusion_rate, recipe.updates // 50 + 1, 0.3
            )
        x0 = draw(recipe.batch, rng_of(seed, step))
        generator = generator_of(seed, step)
        t = sample_t(recipe.times, len(x0), SCHEDULE.T, generator)
        eps = torch.randn(x0.shape, generator=generator)
        with autocast(CPU) if recipe.half else nullcontext():
            loss = training_loss(network, x0, nothing(len(x0)), SCHEDULE, PREDICTION, t, eps).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        ema.update()
        yield {"loss": loss.detach()}


def nothing(count: int) -> Conditioning:
    """The conditioning of a network that is told nothing but x and t."""
    return Conditioning(torch.zeros(count, 0, 1))


@torch.no_grad()
def draw_gan(
    generator: nn.Module, latent: int, count: int, seed: int, half: bool = True
) -> Iterator[Tensor]:
    """Batches of what the generator draws, `count` in all."""
    generator.eval()
    for start in range(0, count, BATCH):
        z = torch.randn(min(BATCH, count - start), latent, generator=generator_of(seed, start, 1))
        with autocast(CPU) if half else nullcontext():
            yield generator(z).float()


@torch.no_grad()
def draw_denoiser(
    network: nn.Module, shape: tuple[int, ...], count: int, steps: int, seed: int, half: bool = True
) -> Iterator[Tensor]:
    """Batches of what comes out of noise in so many steps of DDIM, `count` in all."""
    network.eval()
    levels = SCHEDULE.levels(steps, "uniform")
    predict = predictor(network, PREDICTION)
    for start in range(0, count, BATCH):
        many = min(BATCH, count - start)
        x = torch.randn(many, *shape, generator=generator_of(seed, start, 1))
        with autocast(CPU) if half else nullcontext():
            walk = ddim.sample(
                lambda x, level: predict(x, level, nothing(len(x))), x, levels, torch.randn_like
            )
            *_, last = walk
        yield last.x.float()
