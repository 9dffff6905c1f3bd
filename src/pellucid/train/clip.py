"""Train CLIP: pictures and captions to one space, by the symmetric contrastive loss."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pellucid import data
from pellucid.clip import CLIP, TextConfig, VisionConfig, contrastive_loss
from pellucid.data import SourceOptions, setting
from pellucid.tokenizer import Tokenizer
from pellucid.train.loop import (
    BATCH,
    SAVE_EVERY,
    STEPS,
    Run,
    RunOptions,
    autocast,
    device_of,
    rng_of,
    trained_state,
)
from pellucid.train.recipe import Recipe


@dataclass(frozen=True)
class CLIPOptions(SourceOptions, RunOptions):
    """Options of ``pellucid train clip``."""

    out: Path = setting(
        Path("runs/clip"), "A folder for the state of the run, which is the trained CLIP."
    )
    _: KW_ONLY
    steps: int = setting(450, STEPS)
    batch: int = setting(128, BATCH)
    vocabulary: int = setting(2000, "Tokens in the vocabulary that is made from captions.")
    captions: int = setting(20000, "Captions that the vocabulary is made from.")
    save_every: int = setting(100, SAVE_EVERY)


def train(options: CLIPOptions, recipe: Recipe) -> Path:
    """Run the loop; returns the path of the saved model.

    A killed or interrupted run leaves the state of its last save; with ``resume`` it continues from
    there, bit for bit as if unbroken (on a CPU, with the same options and number of threads).
    """
    device = device_of(options.device)
    source = data.load(options, recipe.mixes["clip"], recipe.multiple)
    captions = source.vocabulary(options.captions, rng_of(options.seed, 0, 5))
    tokenizer = Tokenizer.train(captions, options.vocabulary, recipe.text.context_length)
    torch.manual_seed(options.seed)
    text = replace(recipe.text, vocab_size=tokenizer.vocab_size, eos=tokenizer.eos)
    vision = replace(recipe.vision, image_size=source.size)
    clip = CLIP(text, vision).to(device)
    optimizer = torch.optim.AdamW(clip.parameters(), options.rate, (0.9, 0.98), weight_decay=0.05)
    config = {"text": asdict(text), "vision": asdict(vision)}
    run = Run(
        "clip",
        options.out / "state.pt",
        options,
        {"model": clip, "optimizer": optimizer},
        facts={"tokenizer": tokenizer.to_json(), "config": config},
        every=20,
    )
    for step in run.steps(optimizer, warmup=40, decay_from=0.5):
        batch = source.draw(options.batch, rng_of(options.seed, step), distinct=True)
        ids = tokenizer(batch.captions, padded=False).to(device)
        with autocast(device):
            images = clip.embed_images(batch.pixels.to(device)).float()
            texts = clip.embed_texts(ids).float()
        # In a folder two pictures may have one caption; they are not pushed apart.
        same = torch.tensor([[a == b for b in batch.captions] for a in batch.captions])
        loss = contrastive_loss(images, texts, clip.scale, same.to(device))
        run.update(optimizer, loss)
        hits = (images @ texts.T).argmax(1) == torch.arange(len(images), device=device)
        run.report(loss=loss.detach(), accuracy=hits.float().mean())
        run.save_if_due()
    return run.path


def trained(path: Path, recipe: Recipe) -> tuple[CLIP, Tokenizer]:
    """The towers and the tokenizer that `train` left at `path`, on the CPU.

    A file of Pellucid 0.1 does not contain the shapes of the towers; those of `recipe` are used.
    """
    state = trained_state(path, "CLIP", "clip")
    tokenizer = Tokenizer.from_json(state["tokenizer"])
    clip = CLIP(*configs_of(state, tokenizer, recipe))
    clip.load_state_dict(state["model"])
    return clip.eval(), tokenizer


def configs_of(
    state: dict[str, Any], tokenizer: Tokenizer, recipe: Recipe
) -> tuple[TextConfig, VisionConfig]:
    """The shapes of both towers of a saved CLIP."""
    if "config" in state:
        return TextConfig(**state["config"]["text"]), VisionConfig(**state["config"]["vision"])
    # One position for each patch and one for the class token give the size of the pictures.
    positions = state["model"]["vision.vision_model.embeddings.position_embedding.weight"].shape[0]
    size = math.isqrt(positions - 1) * recipe.vision.patch_size
    text = replace(recipe.text, vocab_size=tokenizer.vocab_size, eos=tokenizer.eos)
    return text, replace(recipe.vision, image_size=size)
