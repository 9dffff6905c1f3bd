"""Train CLIP: pictures and captions to one space, by the symmetric contrastive loss."""

from __future__ import annotations

from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path

import torch

from pellucid import data
from pellucid.clip import CLIP, TextConfig, VisionConfig, contrastive_loss
from pellucid.data import SourceOptions, setting
from pellucid.tokenizer import Tokenizer
from pellucid.train import loop
from pellucid.train.recipe import Recipe


@dataclass(frozen=True)
class CLIPOptions(SourceOptions, loop.RunOptions):
    """Options of ``pellucid train clip``."""

    out: Path = setting(
        Path("runs/clip"), "A folder for the state of the run, which is the trained CLIP."
    )
    _: KW_ONLY
    steps: int = setting(450, loop.STEPS)
    batch: int = setting(128, loop.BATCH)
    vocabulary: int = setting(2000, "Tokens in the vocabulary that is made from captions.")
    captions: int = setting(20000, "Captions that the vocabulary is made from.")
    save_every: int = setting(100, loop.SAVE_EVERY)


def train(options: CLIPOptions, recipe: Recipe, say: loop.Say = loop.silent) -> Path:
    """Run the loop; returns the path of the saved model."""
    device = loop.device_of(options.device)
    source = data.load(options, recipe.mixes["clip"], recipe.multiple)
    captions = source.vocabulary(options.captions, loop.rng_of(options.seed, 0, 5))
    tokenizer = Tokenizer.train(captions, options.vocabulary, recipe.text.context_length)
    torch.manual_seed(options.seed)
    text = replace(recipe.text, vocab_size=tokenizer.vocab_size, eos=tokenizer.eos)
    vision = replace(recipe.vision, image_size=source.size)
    clip = CLIP(text, vision).to(device)
    optimizer = torch.optim.AdamW(clip.parameters(), options.rate, (0.9, 0.98), weight_decay=0.05)
    config = {"text": asdict(text), "vision": asdict(vision)}
    saved = loop.Saved(
        options.out / "state.pt",
        {"model": clip, "optimizer": optimizer},
        facts={"tokenizer": tokenizer.to_json(), "config": config},
    )
    run = loop.Run("clip", options, saved, say, every=20)
    for step in run.steps(optimizer, warmup=40, decay_from=0.5):
        batch = source.draw(options.batch, loop.rng_of(options.seed, step), distinct=True)
        ids = tokenizer(batch.captions, padded=False).to(device)
        with loop.autocast(device):
            images = clip.embed_images(batch.pixels.to(device)).float()
            texts = clip.embed_texts(ids).float()
        # In a folder two pictures may have one caption; they are not pushed apart.
        same = torch.tensor([[a == b for b in batch.captions] for a in batch.captions])
        loss = contrastive_loss(images, texts, clip.scale, same.to(device))
        run.update(optimizer, loss)
        hits = (images @ texts.T).argmax(1) == torch.arange(len(images), device=device)
        run.report(loss=loss.detach(), accuracy=hits.float().mean())
        run.save_if_due()
    return saved.path


def trained(path: Path) -> tuple[CLIP, Tokenizer]:
    """The towers and the tokenizer that `train` left at `path`, on the CPU."""
    with loop.trained_state(path, "CLIP", "clip") as state:
        config = state["config"]
        clip = CLIP(TextConfig(**config["text"]), VisionConfig(**config["vision"]))
        clip.load_state_dict(state["model"])
        return clip.eval(), Tokenizer.from_json(state["tokenizer"])
