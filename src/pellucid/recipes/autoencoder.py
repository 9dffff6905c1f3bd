"""The autoencoder of the small model: 64x64 pixels to 16x16 latents of 8 channels, without seams.

A linear decoder that sees one latent at a time leaves steps between its patches. Here it sees 3x3 of
them, the network beside it ends in convolutions at 32x32, and half of the latents are decoded with
noise on them, so that it learns to smooth over what a diffusion model gets slightly wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from pellucid.recipes import pool
from pellucid.train.loop import (
    Ema,
    Report,
    autocast,
    generator_of,
    learning_rate,
    load_state,
    rng_of,
    save_state,
    say,
)
from pellucid.train.vae import principal_components
from pellucid.vae import VAE, VAEConfig, psnr

CONFIG = VAEConfig(
    latent_channels=8,
    block_out_channels=(32, 96),
    layers_per_block=1,
    norm_groups=8,
    patch_size=2,
    mid_attention=False,
    use_quant_conv=False,
    shortcut=True,
    shortcut_kernel=3,
)


@dataclass(frozen=True)
class Options:
    pool: Path
    held: Path
    out: Path
    steps: int = 1500
    batch: int = 16
    rate: float = 1.5e-3
    kl_weight: float = 1e-5
    noise: float = 0.25
    """The most noise on latents of unit deviation while training."""
    save_every: int = 200
    seed: int = 0


def train(options: Options) -> Path:
    """Run the loop, going on from what was saved; returns the path of the autoencoder."""
    done = options.out / "vae.pt"
    if done.is_file():
        return done
    drawn = pool.pixels(options.pool)
    torch.manual_seed(options.seed)
    vae = VAE(CONFIG)
    first_pixels = pool.to_pixels(drawn[:600])
    principal_components(vae, first_pixels)
    with torch.no_grad():
        spread = float(vae.encode(first_pixels[:100]).mode().std())
    optimizer = torch.optim.AdamW(vae.parameters(), options.rate, (0.9, 0.99), weight_decay=0.01)
    ema = Ema(vae, 0.998)
    path, first = options.out / "state.pt", 0
    if state := load_state(path):
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.restore(state["ema"], state["updates"])
        first = state["step"]
    held = pool.to_pixels(pool.pixels(options.held)[:64])
    report = Report("autoencoder", options.steps, first)
    vae.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    device = torch.device("cpu")
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.rate, 100, 0.4)
        index = np.sort(rng_of(options.seed, step).integers(len(drawn), size=options.batch))
        pixels = pool.to_pixels(drawn[index]).contiguous(memory_format=torch.channels_last)
        generator = generator_of(options.seed, step)
        with autocast(device):
            posterior = vae.encode(pixels)
            z = posterior.sample(generator)
            level = torch.rand(len(z), 1, 1, 1, generator=generator) * 2 - 1  # half have none
            level = level.clamp(min=0) * options.noise * spread
            z = z + level * torch.randn(z.shape, generator=generator)
            decoded = vae.decode(z).float()
            loss = (decoded - pixels).square().mean() + 0.1 * F.l1_loss(decoded, pixels)
            kl = posterior.kl().mean() / pixels[0].numel() * 100
            loss = loss + options.kl_weight * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        ema.update(vae)
        report(step, options.batch, loss=loss.detach())
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            whole = {
                "model": vae.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": ema.weights,
                "updates": ema.updates,
                "step": step + 1,
            }
            save_state(path, whole)
            with ema.applied(vae), torch.no_grad():
                quality = psnr(vae.decode(vae.encode(held).mode()), held)
            say(f"  step {step + 1}: PSNR on held-out pictures {quality:.2f} dB")
    vae.load_state_dict(ema.weights)
    vae.eval()
    with torch.no_grad():
        some = pool.to_pixels(drawn[600:1100])
        latents = torch.cat([vae.encode(part).mode() for part in some.split(50)])
    scale, shift = 1 / float(latents.std()), float(latents.mean())
    save_state(done, {"model": vae.state_dict(), "scale": scale, "shift": shift})
    return done


def trained(path: Path) -> VAE:
    """The autoencoder that `train` left at `path`, on the CPU."""
    state = load_state(path)
    if state is None:
        raise ValueError(f"{path}: no trained autoencoder there")
    vae = VAE(replace(CONFIG, scaling_factor=state["scale"], shift_factor=state["shift"]))
    vae.load_state_dict(state["model"])
    return vae.eval()


@torch.no_grad()
def encode(vae: VAE, folder: Path) -> None:
    """The latents of a pool's pictures, into its ``latents.npy``; what is complete stays."""
    done = folder / "latents.npy"
    if done.is_file():
        return
    drawn = pool.pixels(folder)
    side = drawn.shape[1] // vae.config.downsample
    temporary = folder / "latents.tmp.npy"
    shape = (len(drawn), vae.config.latent_channels, side, side)
    latents = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
    for start in range(0, len(drawn), 100):
        part = pool.to_pixels(drawn[start : start + 100])
        with autocast(part.device):
            found = vae.to_latents(part)
        latents[start : start + 100] = found.half().numpy()
    latents.flush()
    temporary.replace(done)
