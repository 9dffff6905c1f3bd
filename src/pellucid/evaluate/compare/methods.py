"""The methods that are compared: how each is trained, and how each draws.

All see the same pictures in the same order, the same number of them, and every random number is a
function of the seed and the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pellucid.diffusion import Conditioning, predictor, sample_t, training_loss
from pellucid.evaluate.compare.task import Setup, Task
from pellucid.samplers import ddim
from pellucid.schedule import Schedule
from pellucid.train import loop
from pellucid.train.gan import GANTrainer, update

SCHEDULE = Schedule("flow")
PREDICTION = "flow"
BATCH = 256  # of samples that are drawn at once


Networks = tuple[nn.Module, ...]


class Trial(NamedTuple):
    """One run of a method."""

    task: Task
    setup: Setup
    seed: int


class Method(Protocol):
    """A way to learn the pictures of a task and to draw new ones."""

    @property
    def title(self) -> str:
        """Its name in tables and sentences."""

    def networks(self, task: Task) -> Networks:
        """Untrained networks."""

    def train(self, networks: Networks, trial: Trial) -> Iterator[dict[str, Tensor]]:
        """Train in place; yields the figures of each update."""

    def draw(self, networks: Networks, trial: Trial) -> Iterator[Tensor]:
        """Batches of new pictures, (B, *task.shape), `setup.samples` in all."""


@dataclass(frozen=True)
class Gan:
    """A GAN whose discriminator judges `pack` pictures together."""

    title: str
    pack: int

    def networks(self, task: Task) -> Networks:
        return task.gan(self.pack)

    def train(self, networks: Networks, trial: Trial) -> Iterator[dict[str, Tensor]]:
        """The figures: both losses, both accuracies."""
        (generator, discriminator), (task, setup, seed) = networks, trial
        trainer = GANTrainer(generator, discriminator, task.latent, setup.gan_rate)
        for step in range(setup.updates):
            real = task.draw(setup.batch, loop.rng_of(seed, step))
            yield update(trainer, real, None, loop.generator_of(seed, step), half=setup.half)

    @torch.no_grad()
    def draw(self, networks: Networks, trial: Trial) -> Iterator[Tensor]:
        generator, (task, setup, seed) = networks[0].eval(), trial
        for start, count in batches_of(setup.samples):
            z = torch.randn(count, task.latent, generator=loop.generator_of(seed, start, 1))
            with half_precision(setup):
                yield generator(z).float()


@dataclass(frozen=True)
class Diffusion:
    """A denoiser of rectified flow, and DDIM."""

    title: str

    def networks(self, task: Task) -> Networks:
        return (task.denoiser(),)

    def train(self, networks: Networks, trial: Trial) -> Iterator[dict[str, Tensor]]:
        """The figure: the loss. At the end the network has its averaged weights."""
        (network,), (task, setup, seed) = networks, trial
        peak, ema = setup.diffusion_rate, loop.Ema(network, setup.ema)
        optimizer = torch.optim.AdamW(network.parameters(), peak, (0.9, 0.99), fused=True)
        warmup = setup.updates // 50 + 1
        for step in range(setup.updates):
            loop.set_rate(optimizer, loop.learning_rate(step, setup.updates, peak, warmup, 0.3))
            x0 = task.draw(setup.batch, loop.rng_of(seed, step))
            generator = loop.generator_of(seed, step)
            t = sample_t(setup.times, len(x0), SCHEDULE.T, generator)
            eps = torch.randn(x0.shape, generator=generator)
            cond = nothing(len(x0))
            with half_precision(setup):
                loss = training_loss(network, x0, cond, SCHEDULE, PREDICTION, t, eps).mean()
            loop.descend(optimizer, loss)
            ema.update()
            yield {"loss": loss.detach()}
        network.load_state_dict(ema.weights)

    @torch.no_grad()
    def draw(self, networks: Networks, trial: Trial) -> Iterator[Tensor]:
        task, setup, seed = trial
        levels = SCHEDULE.levels(setup.steps, "uniform")
        predict = predictor(networks[0].eval(), PREDICTION)
        for start, count in batches_of(setup.samples):
            x = torch.randn(count, *task.shape, generator=loop.generator_of(seed, start, 1))
            with half_precision(setup):
                *_, last = ddim.sample(
                    lambda x, level: predict(x, level, nothing(len(x))), x, levels, torch.randn_like
                )
            yield last.x.float()


METHODS: dict[str, Method] = {
    "gan": Gan("GAN", 1),
    "pacgan": Gan("PacGAN, packs of 2", 2),
    "diffusion": Diffusion("Diffusion"),
}


def half_precision(setup: Setup) -> AbstractContextManager[object]:
    """bf16 where it is fast, if the setup allows it."""
    return loop.autocast(torch.device("cpu")) if setup.half else nullcontext()


def batches_of(count: int) -> Iterator[tuple[int, int]]:
    """The start and the size of each batch of samples."""
    for start in range(0, count, BATCH):
        yield start, min(BATCH, count - start)


def nothing(count: int) -> Conditioning:
    """The conditioning of a network that gets nothing but x and t."""
    return Conditioning(torch.zeros(count, 0, 1))
