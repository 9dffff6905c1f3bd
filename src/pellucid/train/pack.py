"""Put the trained parts together into one model file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pellucid import checkpoints
from pellucid.backbones.unet import UNet, UNetConfig
from pellucid.data import setting
from pellucid.data._words import lexicon_of
from pellucid.data.emoji import EmojiArt, among_of
from pellucid.lexicon import Lexicon
from pellucid.model import Defaults, Model, TextEncoding
from pellucid.schedule import Schedule
from pellucid.train import clip as train_clip
from pellucid.train import loop
from pellucid.train import upscaler as train_upscaler
from pellucid.train import vae as train_vae
from pellucid.train.recipe import Recipe


@dataclass(frozen=True)
class PackOptions:
    """Options of ``pellucid train pack``."""

    vae: Path = setting(Path("runs/vae/vae.pt"), "The trained autoencoder.")
    clip: Path = setting(Path("runs/clip/state.pt"), "The trained CLIP.")
    diffusion: Path = setting(Path("runs/diffusion/state.pt"), "The trained diffusion network.")
    upscaler: str = setting("", 'The trained super-resolution stage; "": none.')
    art: str = setting("", 'The rendered emoji whose words it has learned; "": none are listed.')
    core: bool = setting(False, "Of the art, it has learned only the core concepts.")
    packages: str = setting(
        "", "The node_modules folder with emojibase-data, whose words say which things are alike."
    )
    out: Path = setting(Path("runs/emoji.safetensors"), "The model file.")
    name: str = setting("emoji", "The model's name.")
    size: int = setting(
        0, "Size of its pictures in pixels, before the upscaler; 0: the size CLIP was trained on."
    )
    steps: int = setting(0, "Steps of a run by default; 0: the recipe's.")
    guidance: float = setting(0.0, "Guidance by default; 0: the recipe's.")
    sampler: str = setting("", 'Sampler by default; "": the recipe\'s.')
    spacing: str = setting("", 'Spacing of the steps by default; "": the recipe\'s.')
    resume: bool = False


def train(options: PackOptions, recipe: Recipe) -> Path:
    """Write the model with averaged (EMA) weights in half precision; returns its path.

    ValueError: a part that is not trained.
    """
    vae = train_vae.trained(options.vae)
    clip, tokenizer = train_clip.trained(options.clip)
    with loop.trained_state(options.diffusion, "network", "diffusion") as state:
        config = UNetConfig(**state["config"])
        network = UNet(config)
        network.load_state_dict(state["ema"])
        schedule, prediction = Schedule(**state["schedule"]), str(state["prediction"])
    text = clip.text.config
    pooled = text.width if text.projection is None else text.projection
    upscaler = train_upscaler.trained(Path(options.upscaler)) if options.upscaler else None
    factor = 1 if upscaler is None else upscaler.config.factor
    model = Model(
        backbone=network,
        vae=vae,
        text=clip.text,
        vision=clip.vision,
        tokenizer=tokenizer,
        schedule=schedule,
        prediction=prediction,
        name=options.name,
        text_encoding=TextEncoding(pooled="words" if config.pooled_dim > pooled else "last"),
        second_stage=upscaler,
        lexicon=learned_words(options),
        defaults=defaults_of(options, recipe.defaults, clip.vision.config.image_size, factor),
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.save(model, options.out, torch.float16)
    return options.out


def learned_words(options: PackOptions) -> Lexicon | None:
    """The words that the model has learned; None if the options name no art."""
    if not options.art:
        return None
    art = EmojiArt.load(Path(options.art))
    packages = Path(options.packages) if options.packages else None
    return lexicon_of(art, among_of(art, options.core), packages)


def defaults_of(options: PackOptions, usual: Defaults, size: int, factor: int) -> Defaults:
    """The recipe's defaults, where the options do not give others. factor: of the upscaler."""
    given = {name: getattr(options, name) for name in ("steps", "guidance", "sampler", "spacing")}
    side = (options.size or size) * factor
    given = {name: value for name, value in given.items() if value}
    return replace(usual, width=side, height=side, **given)
