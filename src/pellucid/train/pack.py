"""Put the trained parts together into one model file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch

from pellucid import checkpoints
from pellucid.backbones.unet import UNet, UNetConfig
from pellucid.model import Defaults, Model, TextEncoding
from pellucid.schedule import Schedule
from pellucid.train import clip as train_clip
from pellucid.train import vae as train_vae
from pellucid.train.loop import load_state
from pellucid.train.recipe import Recipe


@dataclass(frozen=True)
class PackOptions:
    """Options of ``pellucid train pack``."""

    vae: Annotated[Path, "The trained autoencoder."] = Path("runs/vae/vae.pt")
    clip: Annotated[Path, "The trained CLIP."] = Path("runs/clip/state.pt")
    diffusion: Annotated[Path, "The trained diffusion network."] = Path("runs/diffusion/state.pt")
    out: Annotated[Path, "The model file."] = Path("runs/emoji.safetensors")
    name: Annotated[str, "The model's name."] = "emoji"
    size: Annotated[int, "Of the pictures that it draws; 0: as those that CLIP learned from."] = 0
    steps: Annotated[int, "Steps of a run by default; 0: the recipe's."] = 0
    guidance: Annotated[float, "Guidance by default; 0: the recipe's."] = 0.0
    sampler: Annotated[str, 'Sampler by default; "": the recipe\'s.'] = ""
    spacing: Annotated[str, 'Spacing of the steps by default; "": the recipe\'s.'] = ""
    resume: bool = False


def train(options: PackOptions, recipe: Recipe) -> Path:
    """Write the model with averaged (EMA) weights in half precision; returns its path."""
    vae = train_vae.trained(options.vae, recipe)
    clip, tokenizer = train_clip.trained(options.clip, recipe)
    state = load_state(options.diffusion)
    if state is None:
        raise ValueError(f"{options.diffusion}: no trained network; run `pellucid train diffusion`")
    text = clip.text.config
    pooled = text.width if text.projection is None else text.projection
    config = UNetConfig(**state["config"])
    network = UNet(config)
    network.load_state_dict(state["ema"])
    # A state of Pellucid 0.1 does not say what was learned; that was always rectified flow.
    schedule = Schedule(**state["schedule"]) if "schedule" in state else Schedule("flow")
    model = Model(
        backbone=network,
        vae=vae,
        text=clip.text,
        vision=clip.vision,
        tokenizer=tokenizer,
        schedule=schedule,
        prediction=state.get("prediction", "flow"),
        name=options.name,
        text_encoding=TextEncoding(pooled="words" if config.pooled_dim > pooled else "last"),
        defaults=defaults_of(options, recipe.defaults, clip.vision.config.image_size),
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.save(model, options.out, torch.float16)
    return options.out


def defaults_of(options: PackOptions, usual: Defaults, size: int) -> Defaults:
    """The recipe's defaults, where the options do not give others."""
    given = {name: getattr(options, name) for name in ("steps", "guidance", "sampler", "spacing")}
    side = options.size or size
    given = {name: value for name, value in given.items() if value}
    return replace(usual, width=side, height=side, **given)
