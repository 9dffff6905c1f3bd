"""A decoder without seams for latents that stay as they are.

The diffusion model lives in the latents of the encoder, so the encoder must not change; the decoder
may. Its linear part, which saw one latent and made one patch, sees 3x3 of them, and it learns from
latents with noise on them, and from those that a diffusion model has drawn again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

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
from pellucid.vae import VAE, VAEConfig, psnr


@dataclass(frozen=True)
class Options:
    pool: Path
    held: Path
    out: Path
    redrawn: Path | None = None
    """A folder of ``latents.npy`` (N, C, h, w) and ``pixels.npy`` of the pictures they stand for."""
    redrawn_share: float = 0.4
    steps: int = 1500
    batch: int = 16
    rate: float = 7e-4
    noise: float = 0.35
    """The most noise on latents of unit deviation; half of the pictures have none."""
    save_every: int = 200
    seed: int = 0


@torch.no_grad()
def seamless(vae: VAE, kernel: int = 3) -> VAE:
    """The same autoencoder, whose linear decoder sees kernel x kernel latents; it starts equal."""
    network = VAE(replace(vae.config, shortcut_kernel=kernel))
    state = vae.state_dict()
    side = (kernel - vae.config.shortcut_kernel) // 2
    state["decoder_shortcut.weight"] = F.pad(state["decoder_shortcut.weight"], [side] * 4)
    network.load_state_dict(state)
    return network


def train(options: Options, vae: VAE) -> Path:
    """Run the loop, going on from what was saved; returns the path of the autoencoder.

    vae: what `seamless` gave. Only its decoder learns.
    """
    done = options.out / "vae.pt"
    if done.is_file():
        return done
    drawn, held = pool.pixels(options.pool), pool.to_pixels(pool.pixels(options.held)[:64])
    again = None
    if options.redrawn is not None:
        again = [np.load(options.redrawn / n, mmap_mode="r") for n in ("latents.npy", "pixels.npy")]
    vae.requires_grad_(False)
    learning = [vae.decoder, vae.decoder_shortcut]
    if vae.config.use_quant_conv:
        learning.append(vae.post_quant_conv)
    parameters = [p for part in learning for p in part.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(parameters, options.rate, (0.9, 0.99), weight_decay=0.01)
    ema = Ema(vae, 0.998)
    path, first = options.out / "state.pt", 0
    if state := load_state(path):
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.restore(state["ema"], state["updates"])
        first = state["step"]
    report = Report("decoder", options.steps, first, every=100)
    vae.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    device = torch.device("cpu")
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.rate, 50, 0.4)
        rng, generator = rng_of(options.seed, step), generator_of(options.seed, step)
        count = options.batch
        others = 0 if again is None else round(count * options.redrawn_share)
        index = np.sort(rng.integers(len(drawn), size=count - others))
        pixels = pool.to_pixels(drawn[index])
        with autocast(device):
            with torch.no_grad():
                latents = vae.to_latents(pixels)
            level = (torch.rand(len(latents), 1, 1, 1, generator=generator) * 2 - 1).clamp(min=0)
            eps = torch.randn(latents.shape, generator=generator)
            latents = latents + level * options.noise * eps
            if again is not None:
                index = np.sort(rng.integers(len(again[0]), size=others))
                latents = torch.cat([latents, torch.from_numpy(again[0][index]).to(latents)])
                pixels = torch.cat([pixels, pool.to_pixels(again[1][index])])
            decoded = vae.to_pixels(latents).float()
        loss = (decoded - pixels).square().mean() + 0.1 * F.l1_loss(decoded, pixels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.update(vae)
        report(step, options.batch, loss=loss.detach())
        last = step + 1 == options.steps
        if (step + 1) % options.save_every == 0 or last:
            whole = {
                "model": vae.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": ema.weights,
                "updates": ema.updates,
                "step": step + 1,
            }
            save_state(path, whole)
            with ema.applied(vae), torch.no_grad():
                quality = psnr(vae.to_pixels(vae.to_latents(held)), held)
            say(f"  step {step + 1}: PSNR on held-out pictures {quality:.2f} dB")
    save_state(done, {"model": ema.weights, "config": asdict(vae.config)})
    return done


def trained(path: Path) -> VAE:
    """The autoencoder that `train` left at `path`."""
    state = load_state(path)
    if state is None:
        raise ValueError(f"{path}: no trained decoder there")
    config: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in state["config"].items()
    }
    vae = VAE(VAEConfig(**config))
    vae.load_state_dict(state["model"])
    return vae.eval()
