"""The GAN: a generator makes pictures, a discriminator learns to recognise them, and both improve.

Goodfellow et al. 2014 (arXiv:1406.2661) with the networks of DCGAN (Radford et al. 2016,
arXiv:1511.06434). Before diffusion this was how pictures were generated. It has two
problems: training may not converge, and the generator may make only the few pictures that fool the
discriminator best ("mode collapse"). Four remedies from the literature can be switched on in
`GANConfig` and by `r1_penalty`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from pellucid import noise
from pellucid.plugins import choose, nearest

LEVELS = {28: 2, 32: 3, 64: 4}
"""Pixels on a side of a picture -> how many layers halve it, unless a config says so."""

KERNELS = (4, 5)
NORMS = ("batch", "spectral", "none")
CHANNELS = 3
SLOPE = 0.2  # of the leaky ReLU (DCGAN, section 3)


@dataclass(frozen=True)
class GANConfig:
    """The shape of both networks.

    size: pixels on a side, one of LEVELS. latent: length of z, the noise that becomes a picture.
    generator_width, discriminator_width: channels of the layer next to the pixels; each further
    layer has half the size and twice the channels. levels: how many layers there are; 0 is LEVELS'
    number, which ends at 7 or 4 pixels. kernel: pixels on a side of each layer's filters, 4, or 5 as
    in the paper. classes: names of what it can draw; () is an unconditional GAN.

    norm: of the discriminator's layers. "batch" as in DCGAN; "spectral" divides every weight by its
    largest singular value, W / sigma(W) (Miyato et al. 2018, arXiv:1802.05957, eq. 8); "none" is
    what the R1 penalty goes with.
    minibatch_std: the discriminator also sees how much the pictures of a batch differ (Karras et
    al. 2018, arXiv:1710.10196, section 3).
    pack: how many pictures the discriminator judges at once, all real or all generated (PacGAN, Lin et
    al. 2018, arXiv:1712.04086, section 2).
    Raises ValueError: a size that is not in LEVELS, a width, length or pack that is not positive,
    more levels than the size can be halved, a class that is named twice.
    """

    size: int = 32
    latent: int = 100
    generator_width: int = 64
    discriminator_width: int = 64
    classes: tuple[str, ...] = ()
    norm: str = "batch"
    minibatch_std: bool = False
    pack: int = 1
    levels: int = 0
    kernel: int = 4

    def __post_init__(self) -> None:
        if self.size not in LEVELS:
            known = ", ".join(map(str, LEVELS))
            raise ValueError(f"size must be one of {known} pixels, got {self.size}")
        for name in ("latent", "generator_width", "discriminator_width", "pack"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {KERNELS}, got {self.kernel}")
        most = self.size.bit_length() - 1
        if not 0 <= self.levels <= most:
            raise ValueError(
                f"levels must be 1 to {most}, as often as {self.size} pixels can be halved, or 0 for "
                f"the usual number, got {self.levels}"
            )
        choose(self.norm, NORMS, "norm")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("a class is named twice in classes")

    @property
    def sides(self) -> tuple[int, ...]:
        """Pixels on a side, of the picture and behind each layer of the discriminator: 28, 14, 7."""
        sides = [self.size]
        for _ in range(self.levels or LEVELS[self.size]):
            sides.append((sides[-1] + self.kernel % 2) // 2)  # of an odd kernel the larger half
        return tuple(sides)

    @property
    def widths(self) -> tuple[int, ...]:
        """How many times wider each layer is than the one next to the pixels: 1, 2, 4, ..."""
        return tuple(2**i for i in range(len(self.sides) - 1))


class BatchNorm(nn.Module):
    """Each channel of a batch (B, C, h, w) to mean 0 and deviation 1, then scaled and shifted.

    Ioffe & Szegedy 2015 (arXiv:1502.03167), algorithm 1; out of training the running averages take
    the place of the batch's own figures. As torch's, without its counter of batches: all that a
    file holds is floating point.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        averages = (self.running_mean, self.running_var)
        return F.batch_norm(x, *averages, self.weight, self.bias, self.training)


class Generator(nn.Module):
    """Noise z (B, latent) -> pictures (B, 3, size, size) in [-1, 1] (DCGAN, figure 1)."""

    def __init__(self, config: GANConfig) -> None:
        super().__init__()
        self.config = config
        classes, sides = len(config.classes), config.sides[::-1]
        widths = [config.generator_width * w for w in reversed(config.widths)]
        # The class is a second input (Mirza & Osindero 2014, arXiv:1411.1784, section 3.2).
        self.embedding = nn.Embedding(classes, config.latent) if classes else None
        self.project = nn.Linear(config.latent * (2 if classes else 1), widths[0] * sides[0] ** 2)
        self.norm = BatchNorm(widths[0])
        self.layers = nn.Sequential()
        for i, (before, after) in enumerate(pairwise([*widths, CHANNELS])):
            last = i == len(widths) - 1
            # Twice the side, less one with an odd kernel; what is then missing is added.
            more = sides[i + 1] - 2 * sides[i] + config.kernel % 2
            size = (config.kernel, 2, (config.kernel - 1) // 2, more)
            self.layers.append(nn.ConvTranspose2d(before, after, *size, bias=last))
            if not last:
                self.layers.append(BatchNorm(after))
                self.layers.append(nn.ReLU())

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """`labels` (B,): the class of each picture; None for an unconditional GAN.

        ValueError if labels are missing.
        """
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(required_labels(self.config, labels))], dim=1)
        side = self.config.sides[-1]
        h = self.project(z).unflatten(1, (-1, side, side))  # (B, widths[0], side, side)
        return self.layers(F.relu(self.norm(h))).tanh()


class Discriminator(nn.Module):
    """Pictures (B, 3, size, size) -> scores (B / pack,), above 0 for "real".

    Strided convolutions, the mirror of the generator. With classes the score is that of the
    picture plus <class vector, features>, the projection discriminator (Miyato & Koyama
    2018, arXiv:1802.05637, eq. 3).
    """

    def __init__(self, config: GANConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.Sequential()
        before = CHANNELS * config.pack
        for i, times in enumerate(config.widths):
            after = config.discriminator_width * times
            # Batch norm has a bias of its own, and the first layer has none of it (DCGAN, section 3).
            batch = config.norm == "batch" and i > 0
            size = (config.kernel, 2, (config.kernel - 1) // 2)
            self.layers.append(self._bounded(nn.Conv2d(before, after, *size, bias=not batch)))
            if batch:
                self.layers.append(BatchNorm(after))
            self.layers.append(nn.LeakyReLU(SLOPE))
            before = after
        inputs = (before + config.minibatch_std) * config.sides[-1] ** 2
        self.score = self._bounded(nn.Linear(inputs, 1))
        self.embedding: nn.Module | None = None
        if config.classes:
            self.embedding = self._bounded(nn.Embedding(len(config.classes), before))

    def _bounded(self, layer: nn.Module) -> nn.Module:
        return spectral_norm(layer) if self.config.norm == "spectral" else layer

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> Tensor:
        """`labels` (B,): the class of each picture. ValueError if B is no multiple of pack."""
        pack = self.config.pack
        features = self.layers(packed(pixels, pack))  # (B / pack, C, h, w)
        seen = minibatch_std(features) if self.config.minibatch_std else features
        scores = self.score(seen.flatten(1))[:, 0]
        if self.embedding is not None:
            vectors = self.embedding(required_labels(self.config, labels))  # (B, C)
            vectors = vectors.unflatten(0, (-1, pack)).sum(1)  # a pack has several classes
            scores = scores + (vectors * features.sum(dim=(2, 3))).sum(1)
        return scores


def required_labels(config: GANConfig, labels: Tensor | None) -> Tensor:
    """The labels; ValueError if a class-conditional network was given none."""
    if labels is None:
        raise ValueError(
            f"labels of shape (B,) are missing: this GAN has {len(config.classes)} classes"
        )
    return labels


def packed(pixels: Tensor, pack: int) -> Tensor:
    """Neighbours joined along the channels: (B, C, ...) -> (B / pack, pack * C, ...).

    ValueError if B is no multiple of pack.
    """
    if len(pixels) % pack:
        raise ValueError(f"the batch must be a multiple of pack, {pack}, got {len(pixels)}")
    return pixels.unflatten(0, (-1, pack)).flatten(1, 2)


def minibatch_std(features: Tensor) -> Tensor:
    """One more map: the mean standard deviation of the features over the batch, everywhere.

    (B, C, h, w) -> (B, C + 1, h, w). With it the discriminator
    recognises a generator that always draws the same.
    """
    deviation = (features.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
    return torch.cat([features, deviation.expand_as(features[:, :1])], dim=1)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(G(z))) of scores, D = sigmoid(score); scalar (Goodfellow, eq. 1)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """-log D(G(z)), the non-saturating loss; scalar (Goodfellow et al. 2014, section 3).

    The minimax loss log(1 - D(G(z))) has no gradient while the pictures are bad, at the start.
    """
    return F.softplus(-fake).mean()


def accuracies(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """The shares of real pictures that are judged real, and of generated ones judged generated."""
    return (real > 0).float().mean(), (fake < 0).float().mean()


def r1_penalty(
    discriminator: Callable[[Tensor, Tensor | None], Tensor],
    pixels: Tensor,
    labels: Tensor | None = None,
) -> Tensor:
    """Half of the mean |grad D(x)|^2 at real pictures, scalar; times gamma it is added to the loss.

    Mescheder et al. 2018 (arXiv:1801.04406), eq. 9: keeps a discriminator that already separates the
    data from growing its gradients. D must judge each picture (or pack) alone, so it has no batch norm.
    """
    pixels = pixels.detach().requires_grad_(True)
    scores = discriminator(pixels, labels)
    (gradient,) = torch.autograd.grad(scores.sum(), pixels, create_graph=True)
    return 0.5 * gradient.square().sum() / len(scores)


@torch.no_grad()
def dcgan_init(network: nn.Module) -> None:
    """Weights from N(0, 0.02), those of batch norm from N(1, 0.02) (DCGAN, section 4)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
            module.weight.normal_(0.0, 0.02)
        elif isinstance(module, BatchNorm):
            module.weight.normal_(1.0, 0.02)


def untrained(config: GANConfig) -> tuple[Generator, Discriminator]:
    """Both networks, initialised for training."""
    networks = Generator(config), Discriminator(config)
    for network in networks:
        dcgan_init(network)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return networks


@dataclass
class GAN:
    """A trained generator, in eval mode, and its name."""

    generator: Generator
    name: str


@torch.no_grad()
def sample(generator: Generator, seeds: Sequence[int], label: int | None = None) -> Tensor:
    """Pictures (B, 3, size, size) in [-1, 1]; picture i depends on seeds[i] alone.

    label: the class of all of them; None for an unconditional generator.
    """
    return _drawn(generator, _latents(generator, seeds), label)


def between(
    generator: Generator, seeds: tuple[int, int], share: float, label: int | None = None
) -> Tensor:
    """The picture (1, 3, size, size) in [-1, 1] on the way from that of one seed, share 0, to that of
    another, share 1: the noises are mixed on the sphere, as `noise.slerp`."""
    first, last = _latents(generator, seeds).split(1)
    return _drawn(generator, noise.slerp(first, last, share), label)


def _latents(generator: Generator, seeds: Sequence[int]) -> Tensor:
    latent = generator.config.latent
    return torch.cat([torch.randn(1, latent, generator=noise.generators(s, 1)[0]) for s in seeds])


def _drawn(generator: Generator, z: Tensor, label: int | None) -> Tensor:
    device = generator.project.weight.device
    labels = None if label is None else torch.full((len(z),), label, device=device)
    return generator(z.to(device), labels).float()


def class_of(config: GANConfig, prompt: str) -> int | None:
    """The number of the class that the prompt names; None for an unconditional GAN.

    Case does not matter, and an article is ignored. ValueError lists the nearest classes.
    """
    if not config.classes:
        return None
    names = [name.lower() for name in config.classes]
    text = prompt.strip().lower()
    for name in (text, text.removeprefix("a ").removeprefix("an ").removeprefix("the ").strip()):
        if name in names:
            return names.index(name)
    close = ", ".join(nearest(prompt, config.classes)[:8])
    raise ValueError(
        f"there is no class {prompt!r}; this GAN has {len(names)}, nearest first: {close}"
    )
