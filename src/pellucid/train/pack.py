"""Put the trained parts together into one model file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from pellucid import checkpoints
from pellucid.backbones.unet import UNet, UNetConfig
from pellucid.model import Defaults, Model, TextEncoding
from pellucid.train import clip as train_clip
from pellucid.train import vae as train_vae
from pellucid.train.diffusion import EMOJI_PREDICTION, EMOJI_SCHEDULE
from pellucid.train.loop import load_state


@dataclass(frozen=True)
class PackOptions:
    """Options of ``pellucid train pack``."""

    vae: Path = Path("runs/vae/vae.pt")
    clip: Path = Path("runs/clip/state.pt")
    diffusion: Path = Path("runs/diffusion/state.pt")
    out: Path = Path("runs/emoji.safetensors")
    name: str = "emoji"
    size: int = 0
    """Of the pictures that it draws; 0: as those that CLIP was trained on."""
    steps: int = 20
    guidance: float = 5.0
    sampler: str = "dpmpp_2m"
    spacing: str = "uniform"
    resume: bool = False


def train(options: PackOptions) -> Path:
    """Write the model with averaged (EMA) weights in half precision; returns its path."""
    vae = train_vae.trained(options.vae)
    clip, tokenizer = train_clip.trained(options.clip)
    size = clip.vision.config.image_size if options.size == 0 else options.size
    state = load_state(options.diffusion)
    if state is None:
        raise ValueError(f"{options.diffusion}: no trained network; run `pellucid train diffusion`")
    text = clip.text.config
    pooled = text.width if text.projection is None else text.projection
    config = UNetConfig(**state["config"])
    network = UNet(config)
    network.load_state_dict(state["ema"])
    model = Model(
        backbone=network,
        vae=vae,
        text=clip.text,
        vision=clip.vision,
        tokenizer=tokenizer,
        schedule=EMOJI_SCHEDULE,
        prediction=EMOJI_PREDICTION,
        name=options.name,
        text_encoding=TextEncoding(pooled="words" if config.pooled_dim > pooled else "last"),
        defaults=Defaults(
            steps=options.steps,
            guidance=options.guidance,
            sampler=options.sampler,
            spacing=options.spacing,
            width=size,
            height=size,
        ),
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.save(model, options.out, torch.float16)
    return options.out
