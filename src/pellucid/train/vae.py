"""Train the autoencoder: pixels -> small latents -> pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.clip import VisionTower
from pellucid.data.emoji import Mix
from pellucid.train import clip as train_clip
from pellucid.train import pictures
from pellucid.train.loop import (
    Ema,
    Report,
    autocast,
    check,
    device_of,
    generator_of,
    learning_rate,
    load_state,
    rng_of,
    save_state,
    say,
)
from pellucid.vae import (
    VAE,
    PatchDiscriminator,
    VAEConfig,
    discriminator_loss,
    feature_loss,
    generator_loss,
    psnr,
)

EMOJI_VAE = VAEConfig(
    latent_channels=32,
    block_out_channels=(64, 128),
    layers_per_block=1,
    norm_groups=8,
    patch_size=4,
    mid_attention=False,
    shortcut=True,
)
"""Pictures to latents of 32 channels and 1/8 of the size. Trains in minutes on two cores."""


@dataclass(frozen=True)
class VAEOptions:
    """Options of ``pellucid train vae``."""

    art: Path = Path("runs/art64.npz")
    out: Path = Path("runs/vae")
    steps: int = 1000
    batch: int = 16
    rate: float = 1e-3
    kl_weight: float = 1e-5
    features: str = ""
    """A trained CLIP (its state.pt), through whose eyes pictures are compared as well."""
    perceptual: float = 0.0
    """Weight of that comparison; 0 is without."""
    adversarial: float = 0.0
    """Weight of a discriminator's opinion, which is trained along; 0 is without."""
    adversarial_from: int = 500
    """The step at which the discriminator and its weight come in."""
    save_every: int = 200
    """Steps between two saves of the whole state."""
    data: str = ""
    """A folder of pictures with captions to learn from in place of the art."""
    size: int = 64
    """What a folder's pictures are scaled to; the art has a size of its own."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1, mps."""
    seed: int = 0
    resume: bool = False


class Eyes:
    """What each layer of a vision tower sees: pixels (B, 3, S, S) -> maps (B, width, h, w)."""

    def __init__(self, tower: VisionTower):
        self.tower = tower.eval().requires_grad_(False)
        self.seen: list[Tensor] = []
        for layer in tower.vision_model.encoder.layers:
            layer.register_forward_hook(lambda _layer, _inputs, out: self.seen.append(out))

    def __call__(self, pixels: Tensor) -> Sequence[Tensor]:
        self.seen = []
        self.tower(pixels)
        side = self.tower.config.image_size // self.tower.config.patch_size
        # Without the class token, which has no place in the picture.
        return [x[:, 1:].transpose(1, 2).unflatten(2, (side, side)) for x in self.seen]


def eyes(options: VAEOptions, device: torch.device) -> Eyes | None:
    """Those of the trained CLIP that the options name. ValueError if a weight asks for none."""
    if options.perceptual == 0:
        return None
    if not options.features:
        raise ValueError(
            f"perceptual is {options.perceptual} and features names no trained CLIP; "
            "for instance features=runs/clip/state.pt is wanted"
        )
    clip, _ = train_clip.trained(Path(options.features))
    assert isinstance(clip.vision, VisionTower)
    return Eyes(clip.vision.to(device))


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
    check(options)
    device = device_of(options.device)
    source = pictures.load(options.art, options.data, options.size)
    mix = Mix(tinted=0.2, on_color=0.2, pair=0.2)
    torch.manual_seed(options.seed)
    vae = VAE(EMOJI_VAE)
    principal_components(vae, pictures.draw(source, 500, rng_of(options.seed, 0, 9), mix)[0])
    vae.to(device)
    see = eyes(options, device)
    optimizer = torch.optim.AdamW(vae.parameters(), options.rate, (0.9, 0.99), weight_decay=0.01)
    ema = Ema(vae, 0.998)
    critic: nn.Module | None = None
    if options.adversarial > 0:
        critic = PatchDiscriminator().to(device)
        critic_optimizer = torch.optim.AdamW(critic.parameters(), options.rate / 4, (0.5, 0.9))
    path, first = options.out / "state.pt", 0
    if options.resume and (state := load_state(path)):
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.restore(state["ema"], state["updates"])
        first = state["step"]
        if critic is not None and "critic" in state:
            critic.load_state_dict(state["critic"])
            critic_optimizer.load_state_dict(state["critic_optimizer"])
    held = pictures.draw(source, 64, rng_of(options.seed, 0, 7), mix, held=True)[0].to(device)
    report = Report("vae", options.steps, first)
    vae.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.rate, 100, 0.4)
        pixels, _ = pictures.draw(source, options.batch, rng_of(options.seed, step), mix)
        pixels = pixels.to(device).contiguous(memory_format=torch.channels_last)
        judged = critic if step >= options.adversarial_from else None
        with autocast(device):
            posterior = vae.encode(pixels)
            decoded = vae.decode(posterior.sample(generator_of(options.seed, step))).float()
            reconstruction = (decoded - pixels).square().mean() + 0.1 * F.l1_loss(decoded, pixels)
            kl = posterior.kl().mean() / pixels[0].numel() * 100
            loss = reconstruction + options.kl_weight * kl
            if see is not None:
                loss = loss + options.perceptual * feature_loss(see, decoded, pixels).mean()
            if judged is not None:
                loss = loss + options.adversarial * generator_loss(judged(decoded))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        ema.update(vae)
        if judged is not None:
            with autocast(device):
                opinion = discriminator_loss(judged(pixels), judged(decoded.detach()))
            critic_optimizer.zero_grad(set_to_none=True)  # also of what came through it above
            opinion.backward()
            critic_optimizer.step()
        report(
            step, options.batch, loss=loss.detach(), l2=(decoded - pixels).detach().square().mean()
        )
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            whole = {
                "model": vae.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": ema.weights,
                "updates": ema.updates,
                "step": step + 1,
            }
            if critic is not None:
                whole["critic"] = critic.state_dict()
                whole["critic_optimizer"] = critic_optimizer.state_dict()
            save_state(path, whole)
    vae.load_state_dict(ema.weights)
    vae.eval()
    with torch.no_grad():
        drawn, _ = pictures.draw(source, 500, rng_of(options.seed, 0, 8), mix)
        latents = torch.cat([vae.encode(part.to(device)).mode() for part in drawn.split(50)])
        quality = psnr(vae.decode(vae.encode(held).mode()), held)
    say(f"PSNR on held-out pictures {quality:.2f} dB")
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
    """The autoencoder that `train` left at `path`, on the CPU."""
    state = load_state(path)
    if state is None:
        raise ValueError(f"{path}: no trained autoencoder there; run `pellucid train vae` first")
    vae = VAE(replace(EMOJI_VAE, scaling_factor=state["scale"], shift_factor=state["shift"]))
    vae.load_state_dict(state["model"])
    return vae.eval()
