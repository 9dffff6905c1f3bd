"""Train the autoencoder: pixels -> small latents -> pixels."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid import data
from pellucid.clip import VisionTower
from pellucid.data import Source, SourceOptions, setting
from pellucid.train import clip as train_clip
from pellucid.train import loop
from pellucid.train.adversary import Critic, FeatureExtractor, feature_loss, generator_loss
from pellucid.train.recipe import Recipe
from pellucid.vae import VAE, VAEConfig, psnr

HELD = 64
"""Held-out pictures on which the quality is measured at the end."""
MEASURED = 500
"""Pictures by which principal components are measured at the beginning, and the scale at the end."""


@dataclass(frozen=True)
class VAEOptions(SourceOptions, loop.RunOptions):
    """Options of ``pellucid train vae``."""

    out: Path = setting(
        Path("runs/vae"), "A folder for the autoencoder, vae.pt, and the state of the run."
    )
    _: KW_ONLY
    steps: int = setting(1000, loop.STEPS)
    batch: int = setting(16, loop.BATCH)
    kl_weight: float = setting(1e-5, "Weight of the distance of latents from unit normal ones.")
    features: str = setting(
        "", "A trained CLIP (its state.pt), by whose features pictures are compared as well."
    )
    perceptual: float = setting(0.0, "Weight of that comparison; 0 turns it off.")
    adversarial: float = setting(0.0, "Weight of the adversarial loss; 0 turns it off.")
    adversarial_from: int = setting(500, "The step at which the discriminator comes in.")
    save_every: int = setting(200, loop.SAVE_EVERY)


def train(options: VAEOptions, recipe: Recipe, say: loop.Say = loop.silent) -> Path:
    """Run the loop; returns the path of the saved autoencoder.

    A resumed run whose steps are done is only completed.
    """
    device = loop.device_of(options.device)
    source = data.load(options, recipe.mixes["vae"], recipe.multiple)
    torch.manual_seed(options.seed)
    vae = VAE(recipe.vae)
    if recipe.vae.shortcut:
        principal_components(vae, source.draw(MEASURED, loop.rng_of(options.seed, 0, 9)).pixels)
    vae.to(device)
    features = feature_extractor(options, device)
    optimizer = torch.optim.AdamW(vae.parameters(), options.rate, (0.9, 0.99), weight_decay=0.01)
    ema = loop.Ema(vae, 0.998)
    critic = Critic(options.rate / 4, device) if options.adversarial > 0 else None
    parts: dict[str, loop.Stateful] = {"model": vae, "optimizer": optimizer}
    if critic:
        parts |= {"critic": critic.network, "critic_optimizer": critic.optimizer}
    run = loop.Run("vae", options, loop.Saved(options.out / "state.pt", parts, ema), say)
    vae.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for step in run.steps(optimizer, warmup=100, decay_from=0.4):
        pixels = source.draw(options.batch, loop.rng_of(options.seed, step)).pixels
        pixels = pixels.to(device).contiguous(memory_format=torch.channels_last)
        judge = critic if step >= options.adversarial_from else None
        with loop.autocast(device):
            posterior = vae.encode(pixels)
            decoded = vae.decode(posterior.sample(loop.generator_of(options.seed, step))).float()
            loss = (decoded - pixels).square().mean() + 0.1 * F.l1_loss(decoded, pixels)
            kl = posterior.kl().mean() / pixels[0].numel() * 100
            loss = loss + options.kl_weight * kl
            if features is not None:
                loss = loss + options.perceptual * feature_loss(features, decoded, pixels).mean()
            if judge is not None:
                loss = loss + options.adversarial * generator_loss(judge.network(decoded))
        run.update(optimizer, loss)
        if judge is not None:
            judge.update(pixels, decoded)
        run.report(loss=loss.detach(), l2=(decoded - pixels).detach().square().mean())
        run.save_if_due()
    vae.load_state_dict(ema.weights)
    return finish(vae.eval(), source, options, say)


def feature_extractor(options: VAEOptions, device: torch.device) -> FeatureExtractor | None:
    """That of the CLIP `options.features`. ValueError if a weight is given and no CLIP."""
    if options.perceptual == 0:
        return None
    if not options.features:
        raise ValueError(
            f"perceptual is {options.perceptual} and features names no trained CLIP; give one, "
            "such as features=runs/clip/state.pt"
        )
    clip, _ = train_clip.trained(Path(options.features))
    assert isinstance(clip.vision, VisionTower)
    return FeatureExtractor(clip.vision.to(device))


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


@torch.no_grad()
def finish(vae: VAE, source: Source, options: VAEOptions, say: loop.Say) -> Path:
    """Report the quality, measure the scale of the latents, and write vae.pt; its path.

    The scale travels with the weights (Rombach et al. 2022, appendix G).
    """
    device = next(vae.parameters()).device
    held = source.draw(HELD, loop.rng_of(options.seed, 0, 7), held=True).pixels.to(device)
    say(f"PSNR on held-out pictures {psnr(vae.decode(vae.encode(held).mode()), held):.2f} dB")
    pixels = source.draw(MEASURED, loop.rng_of(options.seed, 0, 8)).pixels
    latents = torch.cat([vae.encode(part.to(device)).mode() for part in pixels.split(50)])
    scale, shift = 1 / float(latents.std()), float(latents.mean())
    config = replace(vae.config, scaling_factor=scale, shift_factor=shift)
    state = {"model": vae.state_dict(), "config": asdict(config)}
    loop.save_state(options.out / "vae.pt", state)
    return options.out / "vae.pt"


def trained(path: Path) -> VAE:
    """The autoencoder that `train` left at `path`, on the CPU."""
    with loop.trained_state(path, "autoencoder", "vae") as state:
        vae = VAE(VAEConfig(**state["config"]))
        vae.load_state_dict(state["model"])
    return vae.eval()
