"""Train a decoder without seams, for latents that stay as they are.

A diffusion network that is trained already lives in the latents of an encoder, so the encoder must
not change; the decoder may. Its linear part, which saw one latent and made one patch, sees 3x3 of
them here. Half of the latents have noise on them, so that small errors of a diffusion network are
smoothed over, and some are those that a network has drawn (``pellucid train pairs``).
"""

from __future__ import annotations

from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid import data
from pellucid.data import SourceOptions, setting, to_pixels
from pellucid.train import loop
from pellucid.train import vae as train_vae
from pellucid.train.pairs import FACTOR, box_mean
from pellucid.train.recipe import Recipe
from pellucid.vae import VAE, psnr

KERNEL = 3


@dataclass(frozen=True)
class DecoderOptions(SourceOptions, loop.RunOptions):
    """Options of ``pellucid train decoder``."""

    vae: Path = setting(Path("runs/vae/vae.pt"), "The trained autoencoder.")
    out: Path = setting(
        Path("runs/decoder"),
        "A folder for the autoencoder with its new decoder, vae.pt, and the state of the run.",
    )
    _: KW_ONLY
    steps: int = setting(1500, loop.STEPS)
    batch: int = setting(16, loop.BATCH)
    rate: float = setting(7e-4, loop.RATE)
    latent_noise: float = setting(
        0.35, "The most noise on latents of unit deviation; half of the pictures have none."
    )
    redrawn: str = setting(
        "", "A folder of redrawn pictures, as `pellucid train pairs` writes it, to learn from too."
    )
    redrawn_share: float = setting(0.4, "Fraction of a batch that is from `redrawn`.")
    save_every: int = setting(200, loop.SAVE_EVERY)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.redrawn_share <= 1:
            raise ValueError(f"redrawn_share must be between 0 and 1, got {self.redrawn_share}")


def train(options: DecoderOptions, recipe: Recipe, say: loop.Say = loop.silent) -> Path:
    """Run the loop; returns the path of the autoencoder. The encoder is that of `options.vae`.

    A resumed run whose steps are done is only completed.
    """
    device = loop.device_of(options.device)
    redrawn = Redrawn(Path(options.redrawn)) if options.redrawn else None
    others = round(options.batch * options.redrawn_share) if redrawn else 0
    source = data.load(options, recipe.mixes["vae"], recipe.multiple)
    vae = with_kernel(train_vae.trained(options.vae), KERNEL).to(device)
    vae.requires_grad_(False)
    learning = [vae.decoder, vae.decoder_shortcut]
    if vae.config.use_quant_conv:
        learning.append(vae.post_quant_conv)
    parameters = [p for part in learning for p in part.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(parameters, options.rate, (0.9, 0.99), weight_decay=0.01)
    ema = loop.Ema(vae, 0.998)
    parts: dict[str, loop.Stateful] = {"model": vae, "optimizer": optimizer}
    run = loop.Run("decoder", options, loop.Saved(options.out / "state.pt", parts, ema), say)
    vae.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for step in run.steps(optimizer, warmup=50, decay_from=0.4):
        rng, generator = loop.rng_of(options.seed, step), loop.generator_of(options.seed, step)
        pixels = source.draw(options.batch - others, rng).pixels.to(device)
        with loop.autocast(device):
            with torch.no_grad():
                latents = with_noise(vae.to_latents(pixels), options.latent_noise, generator)
            if redrawn is not None and others:
                found, truth = redrawn.draw(others, rng)
                latents = torch.cat([latents, found.to(latents)])
                pixels = torch.cat([pixels, truth.to(pixels)])
            decoded = vae.to_pixels(latents).float()
        loss = (decoded - pixels).square().mean() + 0.1 * F.l1_loss(decoded, pixels)
        run.update(optimizer, loss)
        run.report(loss=loss.detach())
        run.save_if_due()
    vae.load_state_dict(ema.weights)
    return finish(vae.eval(), source, options, say)


class Redrawn:
    """Latents that a diffusion network has drawn, and the pictures that they should be."""

    def __init__(self, folder: Path) -> None:
        """ValueError if the folder has none."""
        files = [folder / "latents.npy", folder / "large.npy"]
        if missing := [f for f in files if not f.is_file()]:
            raise ValueError(
                f"{missing[0]} is not there; run `pellucid train pairs kind=redrawn` first"
            )
        self.latents, self.large = (np.load(f, mmap_mode="r") for f in files)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Some of them: (B, C, h, w), (B, 3, H, W) in [-1, 1]."""
        index = np.sort(rng.integers(len(self.latents), size=count))
        small = [box_mean(self.large[i], FACTOR) for i in index]
        return torch.from_numpy(self.latents[index]), to_pixels(small)


def with_noise(latents: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Noise of a deviation up to `most` on a random half of the latents (B, C, h, w)."""
    level = (torch.rand(len(latents), 1, 1, 1, generator=generator) * 2 - 1).clamp(min=0) * most
    eps = torch.randn(latents.shape, generator=generator)
    return latents + (level * eps).to(latents)


@torch.no_grad()
def with_kernel(vae: VAE, kernel: int) -> VAE:
    """The same autoencoder with a linear decoder that sees kernel x kernel latents.

    At first it computes the same. ValueError unless it has a linear decoder that sees fewer.
    """
    before = vae.config.shortcut_kernel
    if not vae.config.shortcut or before >= kernel:
        raise ValueError(f"the autoencoder has no linear decoder that sees fewer than {kernel}")
    network = VAE(replace(vae.config, shortcut_kernel=kernel))
    state = vae.state_dict()
    rim = (kernel - before) // 2
    state["decoder_shortcut.weight"] = F.pad(state["decoder_shortcut.weight"], [rim] * 4)
    network.load_state_dict(state)
    return network


@torch.no_grad()
def finish(vae: VAE, source: data.Source, options: DecoderOptions, say: loop.Say) -> Path:
    """Report the quality and write vae.pt, as `train.vae` does; its path."""
    held = source.draw(train_vae.HELD, loop.rng_of(options.seed, 0, 7), held=True).pixels
    held = held.to(next(vae.parameters()).device)
    quality = psnr(vae.to_pixels(vae.to_latents(held)), held)
    say(f"PSNR on held-out pictures {quality:.2f} dB")
    state = {"model": vae.state_dict(), "config": asdict(vae.config)}
    loop.save_state(options.out / "vae.pt", state)
    return options.out / "vae.pt"
