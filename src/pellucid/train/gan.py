"""Train a GAN: the generator forges, the discriminator judges, and they take turns."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid import checkpoints
from pellucid.data.emoji import EmojiArt, Mix, compose, core_concepts
from pellucid.data.imagefolder import Folder
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
from pellucid.train import pictures
from pellucid.train.loop import (
    Ema,
    Report,
    autocast,
    check,
    device_of,
    generator_of,
    load_state,
    rng_of,
    save_state,
)

BETAS = (0.5, 0.999)  # of Adam; a longer memory makes the two swing (DCGAN, section 4)
MIX = Mix(tinted=0.0, on_color=0.0, pair=0.0)
SAMPLES = 36
TOLD = {
    "generator": "generator's loss",
    "discriminator": "discriminator's loss",
    "real": "real ones known",
    "made": "made ones known",
}
"""What the figures of `play` are called where they are told; the latter two are shares, 0 to 1."""


@dataclass(frozen=True)
class GANOptions:
    """Options of ``pellucid train gan``."""

    art: Path = Path("runs/art64.npz")
    """The pictures to learn from, as `pellucid data emoji` writes them."""
    out: Path = Path("runs/gan")
    """A folder for the model, gan.safetensors, the state of the run and its samples."""
    steps: int = 10000
    """Updates of each of the two networks."""
    batch: int = 64
    """Pictures in each update."""
    rate: float = 2e-4
    """Learning rate of both."""
    size: int = 32
    """Pixels on a side of what it draws: 28, 32 or 64. The pictures are scaled to it."""
    latent: int = 100
    """Length of the noise that becomes a picture."""
    width: int = 64
    """Channels of the generator's layer next to the pixels."""
    discriminator_width: int = 64
    """The same of the discriminator."""
    levels: int = 0
    """Layers of each network that halve or double the picture; 0: as many as usual for the size."""
    kernel: int = 4
    """Pixels on a side of each layer's filters, 4 or 5."""
    conditional: bool = False
    """Learn which class each picture is of: an emoji's name, a folder's captions."""
    norm: str = "batch"
    """Of the discriminator: batch, spectral (Miyato et al. 2018) or none."""
    r1: float = 0.0
    """Gamma of the R1 penalty (Mescheder et al. 2018); 10 is common, and goes with norm=none."""
    minibatch_std: bool = False
    """Show the discriminator how much the pictures of a batch differ (Karras et al. 2018)."""
    pack: int = 1
    """Pictures that the discriminator judges together (PacGAN, Lin et al. 2018)."""
    ema: float = 0.999
    """The model is a moving average of the generator's weights; each step keeps so much of it."""
    core: bool = True
    """Of the art only the core concepts."""
    save_every: int = 500
    """Steps between two saves of the whole state."""
    sample_every: int = -1
    """Steps between two sheets of samples, OUT/samples/STEP.png; 0: none; -1: at each save."""
    data: str = ""
    """A folder of pictures with captions to learn from in place of the art."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1, mps."""
    seed: int = 0
    """Of the first weights, the noise and the choice of pictures."""
    resume: bool = False


class Players:
    """The two networks, and an optimizer for each.

    discriminator: called as discriminator(x, labels), gives scores. latent: length of z.
    """

    def __init__(
        self, generator: nn.Module, discriminator: nn.Module, latent: int, rate: float
    ) -> None:
        self.generator, self.discriminator, self.latent = generator, discriminator, latent
        self.forging = torch.optim.Adam(generator.parameters(), rate, BETAS, fused=True)
        self.judging = torch.optim.Adam(discriminator.parameters(), rate, BETAS, fused=True)

    def state(self) -> dict[str, Any]:
        """All that a run needs to go on."""
        parts = ("generator", "discriminator", "forging", "judging")
        return {name: getattr(self, name).state_dict() for name in parts}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        for name in ("generator", "discriminator", "forging", "judging"):
            getattr(self, name).load_state_dict(state[name])


def play(
    players: Players,
    real: Tensor,
    labels: Tensor | None,
    random: torch.Generator,
    r1: float = 0.0,
    half: bool = True,
) -> dict[str, Tensor]:
    """One update of each (Goodfellow et al. 2014, algorithm 1 with k = 1); the figures of it.

    real (B, ...) and labels (B,) are where the networks are. half: bf16 where it is fast.
    The figures, scalars: the loss of the
    "generator" and of the "discriminator", and the share of "real" and of "made" pictures that the
    latter was right about.
    """
    judge, device = players.discriminator, real.device
    z = torch.randn(len(real), players.latent, generator=random).to(device)
    with autocast(device) if half else nullcontext():
        made = players.generator(z, labels)
        on_real, on_made = judge(real, labels).float(), judge(made.detach(), labels).float()
        judged = discriminator_loss(on_real, on_made)
    # The gradient of a gradient wants float32.
    penalty = r1 * r1_penalty(judge, real, labels) if r1 > 0 else 0.0
    players.judging.zero_grad(set_to_none=True)
    (judged + penalty).backward()
    players.judging.step()
    judge.requires_grad_(False)  # the generator learns from its opinion, and does not change it
    with autocast(device) if half else nullcontext():
        forged = generator_loss(judge(made, labels).float())
    players.forging.zero_grad(set_to_none=True)
    forged.backward()
    players.forging.step()
    judge.requires_grad_(True)
    right_real, right_made = accuracies(on_real, on_made)
    return {
        "generator": forged.detach(),
        "discriminator": judged.detach(),
        "real": right_real,
        "made": right_made,
    }


def classes_of(source: pictures.Source, among: Sequence[int]) -> tuple[str, ...]:
    """The classes that can be asked for: names of concepts, or the captions of a folder."""
    if isinstance(source, Folder):
        return tuple(sorted(set(source.captions)))
    return tuple(source.concepts[i].names[0] for i in among)


def draw(
    source: pictures.Source,
    count: int,
    size: int,
    rng: np.random.Generator,
    among: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """`count` pictures (B, 3, size, size) in [-1, 1] and the numbers of their classes (B,)."""
    if isinstance(source, Folder):
        pixels, captions = pictures.draw(source, count, rng, MIX)
        known = {name: i for i, name in enumerate(classes_of(source, among))}
        return pixels, torch.tensor([known[caption] for caption in captions])
    samples = [compose(source, rng, MIX, among=among) for _ in range(count)]
    place = {concept: i for i, concept in enumerate(among)}
    pixels = pictures.to_pixels([s.pixels for s in samples])
    if source.size != size:
        pixels = nn.functional.interpolate(pixels, size=size, mode="area")
    return pixels, torch.tensor([place[s.concepts[0]] for s in samples])


def config_of(options: GANOptions, classes: tuple[str, ...]) -> GANConfig:
    """The networks of this run. ValueError for what does not go together."""
    if options.r1 > 0 and options.norm == "batch":
        raise ValueError(
            f"r1 is {options.r1} and norm is 'batch', with which a picture's score depends on the "
            "others of its batch; norm=none or norm=spectral is wanted"
        )
    if options.batch < 2 * options.pack or options.batch % options.pack:
        raise ValueError(
            f"batch is {options.batch}; a multiple of pack, {options.pack}, and at least twice it "
            "is wanted"
        )
    return GANConfig(
        size=options.size,
        latent=options.latent,
        generator_width=options.width,
        discriminator_width=options.discriminator_width,
        levels=options.levels,
        kernel=options.kernel,
        classes=classes if options.conditional else (),
        norm=options.norm,
        minibatch_std=options.minibatch_std,
        pack=options.pack,
    )


def draw_samples(generator: Generator, path: Path) -> None:
    """A sheet of what the generator draws by now: seeds 0, 1, ..., of each class in turn."""
    classes = len(generator.config.classes)
    generator.eval()
    drawn = [
        to_pil(sample(generator, [seed], seed % classes if classes else None)[0])
        for seed in range(SAMPLES)
    ]
    generator.train()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(grid(drawn), path)


def train(options: GANOptions) -> Path:
    """Run the loop; returns the path of the trained generator, a model file.

    A killed or interrupted run leaves the state of its last save; with ``resume`` it goes on from
    there, bit for bit as if unbroken (on a CPU, with the same options and number of threads).
    """
    check(options)
    device = device_of(options.device)
    config_of(options, ())  # says what is wrong before the pictures are read
    source: pictures.Source
    among: Sequence[int] = ()
    if options.data:
        source = Folder.load(Path(options.data), options.size)
    else:
        source = EmojiArt.load(options.art)
        among = (core_concepts(source) if options.core else []) or range(len(source.concepts))
    config = config_of(options, classes_of(source, among))
    torch.manual_seed(options.seed)
    generator, discriminator = untrained(config)
    generator, discriminator = generator.to(device), discriminator.to(device)
    players = Players(generator, discriminator, config.latent, options.rate)
    ema = Ema(generator, options.ema)
    path, first = options.out / "state.pt", 0
    if options.resume and (state := load_state(path)):
        players.restore(state)
        ema.restore(state["ema"], state["updates"])
        first = state["step"]
    report = Report("gan", options.steps, first)
    sample_every = options.save_every if options.sample_every < 0 else options.sample_every
    for step in range(first, options.steps):
        pixels, labels = draw(source, options.batch, config.size, rng_of(options.seed, step), among)
        figures = play(
            players,
            pixels.to(device),
            labels.to(device) if config.classes else None,
            generator_of(options.seed, step),
            options.r1,
        )
        ema.update(generator)
        report(step, options.batch, **{TOLD[name]: value for name, value in figures.items()})
        last = step + 1 == options.steps
        if (step + 1) % options.save_every == 0 or last:
            averages = {"ema": ema.weights, "updates": ema.updates, "step": step + 1}
            save_state(path, players.state() | averages)
        if sample_every > 0 and ((step + 1) % sample_every == 0 or last):
            with ema.applied(generator):
                draw_samples(generator, options.out / "samples" / f"{step + 1:06}.png")
    generator.load_state_dict(ema.weights)
    done = options.out / "gan.safetensors"
    checkpoints.save_gan(GAN(generator.cpu().eval(), "gan"), done)
    return done
