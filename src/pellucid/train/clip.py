"""Train CLIP: pictures and captions to one space, by the symmetric contrastive loss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pellucid.clip import CLIP, TextConfig, VisionConfig, contrastive_loss
from pellucid.data.emoji import EmojiArt, Mix, compose
from pellucid.tokenizer import Tokenizer
from pellucid.train.loop import Report, learning_rate, load_state, rng_of, save_state

CONTEXT = 24
MIX = Mix(tinted=0.14, on_color=0.12, pair=0.1)


@dataclass(frozen=True)
class CLIPOptions:
    """Options of ``pellucid train clip``."""

    art: Path = Path("runs/art64.npz")
    out: Path = Path("runs/clip")
    steps: int = 450
    batch: int = 128
    rate: float = 1e-3
    vocabulary: int = 2000
    captions: int = 20000
    """Captions that the vocabulary is made from."""
    save_every: int = 100
    """Steps between two saves of the whole state."""
    seed: int = 0
    resume: bool = False


def train_tokenizer(art: EmojiArt, vocabulary: int, count: int, seed: int) -> Tokenizer:
    """A byte-pair vocabulary of the captions; unknown words fall back to pieces and bytes."""
    rng = rng_of(seed, 0, 5)
    captions = [compose(art, rng, MIX).caption for _ in range(count)]
    return Tokenizer.train(captions, vocabulary, CONTEXT)


def emoji_clip(tokenizer: Tokenizer, size: int) -> CLIP:
    """Both towers of the small model, untrained."""
    text = TextConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=CONTEXT,
        width=192,
        layers=3,
        heads=6,
        mlp_width=768,
        activation="quick_gelu",
        projection=192,
        eos=tokenizer.eos,
    )
    vision = VisionConfig(
        image_size=size,
        patch_size=8,
        width=128,
        layers=3,
        heads=4,
        mlp_width=512,
        activation="quick_gelu",
        projection=192,
    )
    return CLIP(text, vision)


def pairs(art: EmojiArt, count: int, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
    """A batch in which no two pictures begin with the same thing: each caption fits one picture."""
    first = rng.permutation(len(art.concepts))[:count]
    samples = [compose(art, rng, MIX, concept=int(c)) for c in first]
    pixels = torch.stack([torch.from_numpy(s.pixels) for s in samples])
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, [s.caption for s in samples]


def train(options: CLIPOptions) -> Path:
    """Run the loop; returns the path of the saved model.

    A killed or interrupted run leaves the state of its last save; with ``resume`` it goes on from
    there, bit for bit as if unbroken (on a CPU, with the same options and number of threads). A run
    that has done its steps already is only finished off.
    """
    art = EmojiArt.load(options.art)
    tokenizer = train_tokenizer(art, options.vocabulary, options.captions, options.seed)
    torch.manual_seed(options.seed)
    clip = emoji_clip(tokenizer, art.size)
    optimizer = torch.optim.AdamW(clip.parameters(), options.rate, (0.9, 0.98), weight_decay=0.05)
    path, first = options.out / "state.pt", 0
    if options.resume and (state := load_state(path)):
        clip.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    report = Report("clip", options.steps, first, every=20)
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.rate, 40, 0.5)
        pixels, captions = pairs(art, options.batch, rng_of(options.seed, step))
        images = clip.embed_images(pixels)
        texts = clip.embed_texts(tokenizer(captions, padded=False))
        loss = contrastive_loss(images, texts, clip.scale)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        hits = (images @ texts.T).argmax(1) == torch.arange(len(images))
        report(step, options.batch, loss=loss.detach(), accuracy=hits.float().mean())
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            save_state(
                path,
                {
                    "model": clip.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                    "tokenizer": tokenizer.to_json(),
                },
            )
    return path


def trained(path: Path, size: int = 64) -> tuple[CLIP, Tokenizer]:
    """The towers and the tokenizer that `train` left at `path`."""
    state = load_state(path)
    if state is None:
        raise ValueError(f"{path}: no trained CLIP there; run `pellucid train clip` first")
    tokenizer = Tokenizer.from_json(state["tokenizer"])
    clip = emoji_clip(tokenizer, size)
    clip.load_state_dict(state["model"])
    return clip.eval(), tokenizer
