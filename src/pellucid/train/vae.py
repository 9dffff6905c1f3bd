"""Train the autoencoder: pixels -> small latents -> pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.data.emoji import EmojiArt, Mix, compose
from pellucid.train.loop import (
    Ema,
    Report,
    generator_of,
    learning_rate,
    load_state,
    rng_of,
    save_state,
    say,
)
from pellucid.vae import VAE, VAEConfig

EMOJI_VAE = VAEConfig(
    latent_channels=32,
    block_out_channels=(64, 128),
    layers_per_block=1,
    norm_groups=8,
    patch_size=4,
    mid_attention=False,
    shortcut=True,
)
"""64x64 pictures to 8x8x32 latents; small enough to train on two cores in minutes."""


@dataclass(frozen=True)
class VAEOptions:
    """Options of ``pellucid train vae``."""

    art: Path = Path("runs/art64.npz")
    out: Path = Path("runs/vae")
    steps: int = 1000
    batch: int = 16
    rate: float = 1e-3
    kl_weight: float = 1e-5
    save_every: int = 200
    """Steps between two saves of the whole state."""
    seed: int = 0
    resume: bool = False


def pictures(
    art: EmojiArt, count: int, rng: np.random.Generator, mix: Mix, held: bool = False
) -> Tensor:
    """`count` composed pictures as (B, 3, size, size) in [-1, 1]."""
    drawn = [compose(art, rng, mix, held=held).pixels for _ in range(count)]
    stacked = torch.stack([torch.from_numpy(p) for p in drawn])
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over pictures of 10 log10(4 / MSE) for values in [-1, 1], clipped to that range. dB."""
    error = (a.clamp(-1, 1) - b).square().mean(dim=(1, 2, 3))
    return float((10 * torch.log10(4 / error)).mean())


@torch.no_grad()
def principal_components(vae: VAE, pixels: Tensor) -> None:
    """Set the autoencoder's linear shortcut to the principal components of picture patches.

    The best linear code of a patch is known in closed form (Pearson 1901), so training starts
    there and the network learns only what a linear code misses. Components are scaled by
    1 / sqrt(their deviation): half way to white, so that no channel drowns in noise and the
    large ones, which say what a thing is, still come first.
    """
    f = vae.config.downsample
    patches = F.unfold(pixels, f, stride=f).transpose(1, 2).reshape(-1, 3 * f * f)
    centred = (patches - patches.mean(dim=0))[:: max(len(patches) // 20000, 1)]
    _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
    k = vae.config.latent_channels
    deviation = spread[:k] / math.sqrt(len(centred))
    scale = deviation.sqrt() / deviation.sqrt().mean() / deviation
    vae.set_shortcut(axes[:k] * scale[:, None], axes[:k].T / scale, patches.mean(dim=0))


def train(options: VAEOptions) -> Path:
    """Run the loop; returns the path of the saved autoencoder.

    A killed or interrupted run leaves the state of its last save; with ``resume`` it goes on from
    there, bit for bit as if unbroken (on a CPU, with the same options and number of threads). A run
    that has done its steps already is only finished off.
    """
    art = EmojiArt.load(options.art)
    mix = Mix(tinted=0.2, on_color=0.2, pair=0.2)
    torch.manual_seed(options.seed)
    vae = VAE(EMOJI_VAE)
    principal_components(vae, pictures(art, 500, rng_of(options.seed, 0, 9), mix))
    optimizer = torch.optim.AdamW(vae.parameters(), options.rate, (0.9, 0.99), weight_decay=0.01)
    ema = Ema(vae, 0.998)
    path, first = options.out / "state.pt", 0
    if options.resume and (state := load_state(path)):
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.weights, ema.updates, first = state["ema"], state["updates"], state["step"]
    held = pictures(art, 64, rng_of(options.seed, 0, 7), mix, held=True)
    report = Report("vae", options.steps, first)
    vae.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.rate, 100, 0.4)
        pixels = pictures(art, options.batch, rng_of(options.seed, step), mix)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(pixels)
        decoded = vae.decode(posterior.sample(generator_of(options.seed, step)))
        reconstruction = (decoded - pixels).square().mean() + 0.1 * F.l1_loss(decoded, pixels)
        loss = reconstruction + options.kl_weight * posterior.kl().mean() / pixels[0].numel() * 100
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        ema.update(vae)
        report(
            step, options.batch, loss=loss.detach(), l2=(decoded - pixels).detach().square().mean()
        )
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            save_state(
                path,
                {
                    "model": vae.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "ema": ema.weights,
                    "updates": ema.updates,
                    "step": step + 1,
                },
            )
    vae.load_state_dict(ema.weights)
    vae.eval()
    with torch.no_grad():
        latents = vae.encode(pictures(art, 500, rng_of(options.seed, 0, 8), mix)).mode()
        quality = psnr(vae.decode(vae.encode(held).mode()), held)
    say(f"PSNR on held-out combinations {quality:.2f} dB")
    # The scale of the latents is measured and travels with the weights (Rombach et al. 2022, G).
    vae.config = replace(
        vae.config, scaling_factor=1 / float(latents.std()), shift_factor=float(latents.mean())
    )
    done = options.out / "vae.pt"
    save_state(
        done,
        {
            "model": vae.state_dict(),
            "scale": vae.config.scaling_factor,
            "shift": vae.config.shift_factor,
        },
    )
    return done


def trained(path: Path) -> VAE:
    """The autoencoder that `train` left at `path`."""
    state = load_state(path)
    if state is None:
        raise ValueError(f"{path}: no trained autoencoder there; run `pellucid train vae` first")
    vae = VAE(replace(EMOJI_VAE, scaling_factor=state["scale"], shift_factor=state["shift"]))
    vae.load_state_dict(state["model"])
    return vae.eval()
