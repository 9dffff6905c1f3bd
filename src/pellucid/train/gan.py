"""Train a GAN: alternating updates of generator and discriminator."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pellucid import checkpoints, data
from pellucid.data import Source, SourceOptions, setting
from pellucid.gan import (
    GAN,
    GANConfig,
    Generator,
    accuracies,
    discriminator_loss,
    generator_loss,
    r1_penalty,
    sample,
    untrained,
)
from pellucid.images.metadata import save_image
from pellucid.images.pixels import grid, to_pil
from pellucid.train import loop
from pellucid.train.recipe import Recipe

BETAS = (0.5, 0.999)  # of Adam; a higher beta1 makes training oscillate (DCGAN, section 4)
SAMPLES = 36
FIGURE_NAMES = {
    "generator": "generator's loss",
    "discriminator": "discriminator's loss",
    "real": "real ones known",
    "fake": "fake ones known",
}
"""Titles of the figures of `update`; the latter two are fractions, 0..1."""


@dataclass(frozen=True)
class GANOptions(SourceOptions, loop.RunOptions):
    """Options of ``pellucid train gan``."""

    out: Path = setting(
        Path("runs/gan"), "A folder for the model, gan.safetensors, the state and the samples."
    )
    _: KW_ONLY
    steps: int = setting(10000, "Updates of each of the two networks.")
    batch: int = setting(64, loop.BATCH)
    rate: float = setting(2e-4, loop.RATE)
    size: int = setting(
        32, "Pixels on a side of what it draws: 28, 32 or 64. The pictures are scaled to it."
    )
    latent: int = setting(100, "Length of the noise that becomes a picture.")
    width: int = setting(64, "Channels of the generator's layer next to the pixels.")
    discriminator_width: int = setting(64, "The same of the discriminator.")
    levels: int = setting(
        0, "Layers of each network that halve or double the picture; 0: the usual for the size."
    )
    kernel: int = setting(4, "Pixels on a side of each layer's filters, 4 or 5.")
    conditional: bool = setting(
        False, "Learn which class each picture is of: an emoji's name, another picture's caption."
    )
    norm: str = setting(
        "batch", "Of the discriminator: batch, spectral (Miyato et al. 2018) or none."
    )
    r1: float = setting(
        0.0, "Gamma of the R1 penalty (Mescheder et al. 2018); 10 is common, with norm=none."
    )
    minibatch_std: bool = setting(
        False,
        "Show the discriminator how much the pictures of a batch differ (Karras et al. 2018).",
    )
    pack: int = setting(
        1, "Pictures that the discriminator judges together (PacGAN, Lin et al. 2018)."
    )
    ema: float = setting(
        0.999, "Decay of the moving average of the generator's weights, which is the model."
    )
    core: bool = setting(True, "Of the art, learn only the core concepts.")
    sample_every: int = setting(
        -1, "Steps between two sheets of samples, OUT/samples/STEP.png; 0: none; -1: at each save."
    )


class GANTrainer:
    """The two networks, and an optimizer for each.

    discriminator: called as discriminator(x, labels), gives scores. latent: length of z.
    """

    def __init__(
        self, generator: nn.Module, discriminator: nn.Module, latent: int, rate: float
    ) -> None:
        self.generator, self.discriminator, self.latent = generator, discriminator, latent
        self.generator_optimizer = torch.optim.Adam(generator.parameters(), rate, BETAS, fused=True)
        self.discriminator_optimizer = torch.optim.Adam(
            discriminator.parameters(), rate, BETAS, fused=True
        )

    def parts(self) -> Mapping[str, loop.Stateful]:
        """All that a run saves and restores."""
        names = ("generator", "discriminator", "generator_optimizer", "discriminator_optimizer")
        return {name: getattr(self, name) for name in names}


def update(
    trainer: GANTrainer,
    real: Tensor,
    labels: Tensor | None,
    random: torch.Generator,
    r1: float = 0.0,
    half: bool = True,
) -> dict[str, Tensor]:
    """One update of each (Goodfellow et al. 2014, algorithm 1 with k = 1); returns its figures.

    real (B, ...) and labels (B,) are on the device of the networks. half: bf16 where it is fast.
    The figures are scalars: the loss of the "generator" and of the "discriminator", and the
    fraction of "real" and of "fake" pictures that the latter was right about.
    """
    judge, device = trainer.discriminator, real.device
    z = torch.randn(len(real), trainer.latent, generator=random).to(device)
    with loop.autocast(device) if half else nullcontext():
        fake = trainer.generator(z, labels)
        on_real, on_fake = judge(real, labels).float(), judge(fake.detach(), labels).float()
        loss_d = discriminator_loss(on_real, on_fake)
    # The gradient of a gradient needs float32.
    penalty = r1 * r1_penalty(judge, real, labels) if r1 > 0 else 0.0
    loop.descend(trainer.discriminator_optimizer, loss_d + penalty, max_norm=None)
    judge.requires_grad_(False)  # freeze the discriminator during the generator update
    with loop.autocast(device) if half else nullcontext():
        loss_g = generator_loss(judge(fake, labels).float())
    loop.descend(trainer.generator_optimizer, loss_g, max_norm=None)
    judge.requires_grad_(True)
    right_real, right_fake = accuracies(on_real, on_fake)
    return {
        "generator": loss_g.detach(),
        "discriminator": loss_d.detach(),
        "real": right_real,
        "fake": right_fake,
    }


def batch_of_step(source: Source, options: GANOptions, step: int) -> tuple[Tensor, Tensor]:
    """The pictures of a step (B, 3, size, size) in [-1, 1], and their classes (B,)."""
    batch = source.draw(options.batch, loop.rng_of(options.seed, step))
    pixels = batch.pixels
    if source.size != options.size:
        pixels = nn.functional.interpolate(pixels, size=options.size, mode="area")
    return pixels, batch.labels


def config_of(options: GANOptions, classes: tuple[str, ...]) -> GANConfig:
    """The networks of this run. ValueError for options that exclude each other."""
    if options.r1 > 0 and options.norm == "batch":
        raise ValueError(
            f"r1 is {options.r1} and norm is 'batch', with which a picture's score depends on the "
            "others in its batch; r1 needs norm=none or norm=spectral"
        )
    if options.batch < 2 * options.pack or options.batch % options.pack:
        raise ValueError(
            f"batch must be a multiple of pack, {options.pack}, and at least twice as large, "
            f"got {options.batch}"
        )
    shared = ("size", "latent", "discriminator_width", "levels", "kernel", "norm", "minibatch_std")
    return GANConfig(
        **{name: getattr(options, name) for name in (*shared, "pack")},
        generator_width=options.width,
        classes=classes if options.conditional else (),
    )


def draw_samples(generator: Generator, path: Path) -> None:
    """Writes a sheet of samples: seeds 0, 1, ..., of each class in turn."""
    classes = len(generator.config.classes)
    generator.eval()
    drawn = [
        to_pil(sample(generator, [seed], seed % classes if classes else None)[0])
        for seed in range(SAMPLES)
    ]
    generator.train()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(grid(drawn), path)


def train(options: GANOptions, recipe: Recipe, say: loop.Say = loop.silent) -> Path:
    """Run the loop; returns the path of the trained generator, a model file."""
    device = loop.device_of(options.device)
    config_of(options, ())  # reports what is wrong before the pictures are read
    source = data.load(options, recipe.mixes["gan"])
    config = config_of(options, source.classes)
    torch.manual_seed(options.seed)
    generator, discriminator = untrained(config)
    generator, discriminator = generator.to(device), discriminator.to(device)
    trainer = GANTrainer(generator, discriminator, config.latent, options.rate)
    ema = loop.Ema(generator, options.ema)
    run = loop.Run("gan", options, loop.Saved(options.out / "state.pt", trainer.parts(), ema), say)
    for step in run.steps():
        pixels, labels = batch_of_step(source, options, step)
        figures = update(
            trainer,
            pixels.to(device),
            labels.to(device) if config.classes else None,
            loop.generator_of(options.seed, step),
            options.r1,
        )
        run.average()
        run.report(**{FIGURE_NAMES[name]: value for name, value in figures.items()})
        run.save_if_due()
        if run.due(options.sample_every):
            with ema.applied():
                draw_samples(generator, options.out / "samples" / f"{step + 1:06}.png")
    generator.load_state_dict(ema.weights)
    done = options.out / "gan.safetensors"
    checkpoints.save_gan(GAN(generator.cpu().eval(), "gan"), done)
    return done
