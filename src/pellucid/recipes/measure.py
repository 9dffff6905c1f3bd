"""The figures of the small model while it is trained, without the command line.

`pellucid evaluate` measures the finished file; here the state of a training run is drawn from at
once, many prompts in one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid import noise, samplers
from pellucid.backbones.unet import UNet, UNetConfig
from pellucid.conditioning import encode
from pellucid.data.emoji import EmojiArt, with_article
from pellucid.diffusion import predictor
from pellucid.evaluate import composition
from pellucid.evaluate.classifier import Classifier
from pellucid.evaluate.quality import named
from pellucid.guidance import ClassifierFree
from pellucid.model import Model
from pellucid.train.loop import load_state


def with_network(model: Model, path: Path, averaged: bool = True) -> Model:
    """The model with the network that a run of `recipes.diffusion` has left at `path`."""
    state = load_state(path)
    if state is None:
        raise ValueError(f"{path}: no trained network there")
    config: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in state["config"].items()
    }
    network = UNet(UNetConfig(**config))
    network.load_state_dict(state["ema" if averaged else "model"])
    network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return replace(model, backbone=network)


def drawer(
    model: Model,
    guidance: float = 3.0,
    steps: int = 12,
    sampler: str = "dpmpp_2m",
    batch: int = 40,
) -> composition.Draw:
    """A function from prompts and a seed to pictures (B, 3, S, S)."""
    empty = encode(model.text, model.tokenizer, [""], words=True)
    predict = predictor(model.backbone, model.prediction)
    sample = samplers.get(sampler).sample
    levels = model.schedule.levels(steps, "uniform")

    @torch.no_grad()
    def draw(prompts: Sequence[str], seed: int) -> Tensor:
        side = model.defaults.width // model.vae.config.downsample
        shape = (model.vae.config.latent_channels, side, side)
        drawn = []
        for start in range(0, len(prompts), batch):
            part = list(prompts[start : start + batch])
            seeds = noise.generators(seed + start, len(part))
            x = noise.draw("gaussian", shape, seeds)
            cond = encode(model.text, model.tokenizer, part, words=True)
            denoise = ClassifierFree(predict, cond, empty, guidance)
            *_, last = sample(denoise, x * levels[0].sigma, levels, noise.source(seeds))
            drawn.append(model.vae.to_pixels(last.x).clamp(-1, 1))
        return torch.cat(drawn)

    return draw


def figures(
    art: EmojiArt,
    judge: Classifier,
    draw: composition.Draw,
    concepts: Sequence[int],
    pairs: int = 60,
) -> tuple[dict[str, float], list[str], Tensor]:
    """The figures, what was missed, and one picture of every concept."""
    texts = [with_article(art.concepts[c].names[0]) for c in concepts]
    drawn = draw(texts, 0)
    seen = named(judge, drawn)
    missed = [
        f"{t} -> {art.concepts[s].names[0]}"
        for t, s, c in zip(texts, seen, concepts, strict=True)
        if s != c
    ]
    told = {"every concept, named": 1 - len(missed) / len(concepts)}
    told["seams"] = composition.seams(drawn)
    rows = composition.two_things(art, judge, draw, concepts, pairs)
    rows += composition.counting(art, judge, draw, concepts, pairs)
    rows += composition.colors_of_two(art, judge, draw, concepts, pairs)
    told |= {row.name: row.share for row in rows}
    told |= composition.variety(art, draw, concepts)
    return told, missed, drawn
