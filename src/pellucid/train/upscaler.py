"""Train the super-resolution stage of a cascade: small picture and noise -> large picture.

Pairs come in folders of ``small.npy`` (N, h, w, 3) and ``large.npy`` (N, factor * h, factor * w, 3),
uint8, which are mapped into memory. What decides how the stage does on a generator's pictures is
whether some of the small ones have that generator's faults.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid import cascade, checkpoints
from pellucid.cascade import Noises, SuperResolution, SuperResolutionConfig
from pellucid.data import setting, to_pixels
from pellucid.train import loop
from pellucid.train.adversary import Critic, generator_loss
from pellucid.train.recipe import Recipe
from pellucid.vae import psnr

TRIES = 3  # crops of a picture from which the one with the most in it is taken
MEASURED = 24  # held-out pairs


@dataclass(frozen=True)
class UpscalerOptions(loop.RunOptions):
    """Options of ``pellucid train upscaler``."""

    pairs: str = setting(
        "runs/pairs",
        "Folders of pairs (small.npy, large.npy), joined by commas; FOLDER:SHARE says how often it "
        "is drawn from.",
    )
    out: Path = setting(Path("runs/upscaler"), "A folder for the state of the run.")
    _: KW_ONLY
    held: str = setting("", "Folders of pairs, joined by commas, on which it is only measured.")
    steps: int = setting(4600, loop.STEPS)
    batch: int = setting(12, loop.BATCH)
    rate: float = setting(1e-3, loop.RATE)
    crop: int = setting(24, "Side of a crop of the small picture, a multiple of 8.")
    ema: float = setting(0.998, "Decay of the averaged weights.")
    decay_from: float = setting(0.4, "Fraction of the run at which the learning rate decays.")
    power: int = setting(
        1, "The loss: 1, the absolute error, or 2, the squared one, which gives softer edges."
    )
    augment: float = setting(
        0.15,
        "The largest deviation of the noise on the small picture; half of the crops have none.",
    )
    adversarial: float = setting(
        0.0, "Weight of the adversarial loss on what is drawn, which gives sharp edges; 0: none."
    )
    adversarial_from: int = setting(0, "The step at which the discriminator comes in.")
    start: str = setting("", "A model whose second stage is trained further.")
    save_every: int = setting(200, loop.SAVE_EVERY)
    measure_every: int = setting(1000, "Steps between two measurements; 0: only at the end.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.power not in (1, 2):
            raise ValueError(f"power must be 1 or 2, got {self.power}")
        if self.adversarial < 0:
            raise ValueError(f"adversarial must be at least 0, got {self.adversarial:g}")


class Pairs(NamedTuple):
    """Small and large pictures of the same things."""

    small: np.ndarray  # (N, h, w, 3) uint8
    large: np.ndarray  # (N, H, W, 3) uint8

    @classmethod
    def load(cls, folder: Path, factor: int) -> Pairs:
        """ValueError if the folder has no pairs of this factor."""
        files = [folder / "small.npy", folder / "large.npy"]
        if missing := [file for file in files if not file.is_file()]:
            raise ValueError(f"{missing[0]} is not a file; a folder of pairs must have it")
        try:
            small, large = (np.load(file, mmap_mode="r") for file in files)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{folder}: not a folder of pairs ({error})") from error
        count, *size = small.shape
        expected = (count, *(side * factor for side in size[:2]), 3)
        if small.ndim != 4 or small.dtype != np.uint8 or large.dtype != np.uint8 or count == 0:
            raise ValueError(f"{folder}: small.npy and large.npy must be (N, h, w, 3), uint8")
        if large.shape != expected:
            raise ValueError(
                f"{folder}: large.npy must have the shape {expected}, {factor} times that of "
                f"small.npy, got {large.shape}"
            )
        return cls(small, large)


def folders_of(text: str) -> list[tuple[Path, float]]:
    """ "a:2,b" -> a with the share 2, b with 1. ValueError for a share that is not above 0."""
    found = []
    for word in filter(None, text.split(",")):
        name, colon, share = word.rpartition(":")
        try:
            each = (Path(name), float(share)) if colon else (Path(word), 1.0)
        except ValueError:  # a colon in the name
            each = (Path(word), 1.0)
        if not 0 < each[1] < float("inf"):
            raise ValueError(f"the share of {each[0]} must be above 0, got {each[1]:g}")
        found.append(each)
    return found


def crops(
    sources: Sequence[tuple[Pairs, float]],
    count: int,
    crop: int,
    config: SuperResolutionConfig,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Small crops (count, 3, crop, crop) and their large ones, half of them mirrored.

    They begin and end on the generator's grid, so a mirrored one is on it too.
    """
    shares = np.array([share for _, share in sources])
    small, large, factor = [], [], config.factor
    for which in rng.choice(len(sources), count, p=shares / shares.sum()):
        pairs = sources[which][0]
        i = int(rng.integers(len(pairs.small)))
        top, left = full_place(pairs.small[i], crop, max(config.period, 1), rng)
        one = pairs.small[i, top : top + crop, left : left + crop]
        top, left, side = factor * top, factor * left, factor * crop
        two = pairs.large[i, top : top + side, left : left + side]
        mirrored = slice(None, None, -1 if rng.random() < 0.5 else 1)
        small.append(one[:, mirrored])
        large.append(two[:, mirrored])
    return to_pixels(np.stack(small)), to_pixels(np.stack(large))


def full_place(
    picture: np.ndarray, crop: int, period: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Top and left of a random crop that is not empty, as far as possible: flat ones teach nothing."""
    best, found = -1.0, (0, 0)
    for _ in range(TRIES):
        top, left = (
            int(rng.integers((side - crop) // period + 1)) * period for side in picture.shape[:2]
        )
        spread = float(np.std(picture[top : top + crop, left : left + crop], axis=(0, 1)).sum())
        if spread > best:
            best, found = spread, (top, left)
    return found


def draw_noises(small: Tensor, large: Tensor, augment: float, generator: torch.Generator) -> Noises:
    """The noises of a step. u is the sigmoid of a normal of mean 0.4 and deviation 1.2, and 1 for
    one in ten; the deviation on the small picture is uniform up to `augment`, for half of them."""
    count = len(small)
    u = (torch.randn(count, generator=generator) * 1.2 + 0.4).sigmoid()
    u = torch.where(torch.rand(count, generator=generator) < 0.1, torch.ones(()), u)
    deviation = (torch.rand(count, generator=generator) * 2 - 1).clamp(min=0) * augment
    eps = torch.randn(large.shape, generator=generator)
    return Noises(u, eps, deviation, torch.randn(small.shape, generator=generator))


def laplacian_energy(pixels: Tensor) -> Tensor:
    """Mean square of the discrete Laplacian of each picture, (B,): how sharp it is."""
    kernel = pixels.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).expand(3, 1, 3, 3)
    return F.conv2d(pixels, kernel, groups=3).square().mean(dim=(1, 2, 3))


@torch.no_grad()
def measure(
    network: SuperResolution, pairs: Pairs, count: int = MEASURED, steps: int = cascade.STEPS
) -> dict[str, float]:
    """PSNR in dB, and sharpness (Laplacian energy over that of the truth), of bicubic enlargement
    and of the stage, on `count` of the pairs."""
    device = next(network.parameters()).device
    index = np.linspace(0, len(pairs.small) - 1, min(count, len(pairs.small))).astype(int)
    small, large = to_pixels(pairs.small[index]), to_pixels(pairs.large[index])
    eps = torch.randn(large.shape, generator=torch.Generator().manual_seed(0))
    drawn = []
    for one, own in zip(small.split(4), eps.split(4), strict=True):
        with loop.autocast(device):
            *_, last = cascade.sample(network, one.to(device), own.to(device), steps)
        drawn.append(last.large.cpu())
    bicubic = cascade.enlarge(small, network.config.factor).clamp(-1, 1)
    made = torch.cat(drawn)
    real = laplacian_energy(large).mean()
    return {
        "PSNR bicubic": psnr(bicubic, large),
        "PSNR": psnr(made, large),
        "sharpness bicubic": float(laplacian_energy(bicubic).mean() / real),
        "sharpness": float(laplacian_energy(made).mean() / real),
    }


def train(options: UpscalerOptions, recipe: Recipe, say: loop.Say = loop.silent) -> Path:
    """Run the loop; returns the path of the state.

    ValueError: no pairs, or a crop that does not fit them.
    """
    config, device = recipe.upscaler, loop.device_of(options.device)
    sources = [
        (Pairs.load(path, config.factor), share) for path, share in folders_of(options.pairs)
    ]
    held = {path.name: Pairs.load(path, config.factor) for path, _ in folders_of(options.held)}
    check_crop(options, config, [pairs for pairs, _ in sources])
    torch.manual_seed(options.seed)
    network = new_network(config, options.start)
    network.to(device).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(
        network.parameters(), options.rate, (0.9, 0.99), weight_decay=0.01, fused=True
    )
    ema = loop.Ema(network, options.ema)
    facts = {"config": asdict(config)}
    parts: dict[str, loop.Stateful] = {"model": network, "optimizer": optimizer}
    critic = Critic(options.rate / 4, device) if options.adversarial > 0 else None
    if critic:
        parts |= {"critic": critic.network, "critic_optimizer": critic.optimizer}
    saved = loop.Saved(options.out / "state.pt", parts, ema, facts)
    run = loop.Run("upscaler", options, saved, say)
    average: float | Tensor = 1.0
    for step in run.steps(optimizer, warmup=100, decay_from=options.decay_from):
        rng = loop.rng_of(options.seed, step)
        small, large = (
            each.to(device) for each in crops(sources, options.batch, options.crop, config, rng)
        )
        noises = draw_noises(small, large, options.augment, loop.generator_of(options.seed, step))
        noises = Noises(*(each.to(device) for each in noises))
        judge = critic if step >= options.adversarial_from else None
        with loop.autocast(device):
            losses = cascade.training_loss(network, large, small, noises, config, options.power)
            loss = losses.mean()
            if judge is not None:
                made = drawn(network, small, noises.eps)
                loss = loss + config.residual_scale * F.l1_loss(made, large)
                loss = loss + options.adversarial * generator_loss(judge.network(made))
        run.update(optimizer, loss)
        if judge is not None:
            judge.update(large, made)
        average = 0.99 * average + 0.01 * losses.detach().mean()
        run.report(loss=average)
        run.save_if_due()
        if run.due(options.measure_every or options.steps):
            with ema.applied():
                for name, pairs in held.items():
                    figures = measure(network, pairs).items()
                    say(f"  {name}: " + "  ".join(f"{key} {value:.3f}" for key, value in figures))
    return saved.path


def new_network(config: SuperResolutionConfig, start: str) -> SuperResolution:
    """One whose first answer is bicubic, or the second stage of the model `start`. ValueError: it has
    none, or one of another shape."""
    network = SuperResolution(config)
    cascade.init_for_training(network)
    if start:
        second = checkpoints.load(start).second_stage
        if second is None:
            raise ValueError(f"{start}: the model has no second stage")
        if replace(second.config, sharpen=config.sharpen) != config:
            raise ValueError(f"{start}: its second stage has another shape than the recipe's")
        network.load_state_dict(second.state_dict())
    return network


def drawn(network: SuperResolution, small: Tensor, noise: Tensor) -> Tensor:
    """Small pictures (B, 3, h, w) enlarged as a model does it, (B, 3, H, W), before they are sharpened;
    the gradient is that of the last step."""
    steps = cascade.sample(network, small, noise)
    with torch.no_grad():
        for _ in range(cascade.STEPS - 1):
            next(steps)
    return cascade.to_large(next(steps).residual, small, network.config)


def check_crop(
    options: UpscalerOptions, config: SuperResolutionConfig, sources: Sequence[Pairs]
) -> None:
    """ValueError for no pairs, and for a crop that is larger than a picture or not on the grid."""
    if not sources:
        raise ValueError("pairs must name at least one folder, got none")
    most, period = min(min(pairs.small.shape[1:3]) for pairs in sources), max(config.period, 1)
    if not 0 < options.crop <= most or options.crop % period:
        raise ValueError(
            f"crop must be a multiple of {period} between {period} and {most}, got {options.crop}"
        )


def trained(path: Path) -> SuperResolution:
    """The averaged network that `train` left at `path`, on the CPU."""
    with loop.trained_state(path, "upscaler", "upscaler") as state:
        network = SuperResolution(SuperResolutionConfig(**state["config"]))
        network.load_state_dict(state["ema"])
    return network.eval()
