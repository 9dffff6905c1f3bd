"""CLIP of the small model: all words that the art has, trained on a pool of scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pellucid.clip import CLIP, TextConfig, TextTower, VisionConfig, contrastive_loss
from pellucid.conditioning import encode
from pellucid.data.emoji import EmojiArt
from pellucid.recipes import pool
from pellucid.tokenizer import Tokenizer
from pellucid.train.loop import (
    Report,
    autocast,
    learning_rate,
    load_state,
    rng_of,
    save_state,
)

CONTEXT = 32
WIDTH = 192
PATCH = 8


@dataclass(frozen=True)
class Options:
    pool: Path
    out: Path
    steps: int = 800
    batch: int = 128
    rate: float = 1e-3
    vocabulary: int = 3200
    save_every: int = 100
    seed: int = 0


def tokenizer_of(captions: Sequence[str], art: EmojiArt, vocabulary: int) -> Tokenizer:
    """A byte-pair vocabulary in which the names of the concepts are whole words, if they fit."""
    names = [n for c in art.concepts for n in (*c.names, *c.keywords)]
    return Tokenizer.train([*captions, *names * 8], vocabulary, CONTEXT)


def towers(tokenizer: Tokenizer, size: int) -> CLIP:
    """Both towers, untrained."""
    text = TextConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=CONTEXT,
        width=WIDTH,
        layers=3,
        heads=6,
        mlp_width=4 * WIDTH,
        activation="quick_gelu",
        projection=WIDTH,
        eos=tokenizer.eos,
    )
    vision = VisionConfig(
        image_size=size,
        patch_size=PATCH,
        width=128,
        layers=3,
        heads=4,
        mlp_width=512,
        activation="quick_gelu",
        projection=WIDTH,
    )
    return CLIP(text, vision)


def batch_of(by_concept: Sequence[np.ndarray], rng: np.random.Generator, count: int) -> np.ndarray:
    """Numbers of pictures, no two of which begin with the same thing."""
    chosen = rng.permutation(len(by_concept))[:count]
    return np.array([by_concept[c][int(rng.integers(len(by_concept[c])))] for c in chosen])


def train(options: Options, art: EmojiArt) -> Path:
    """Run the loop, going on from what was saved; returns the path of the state."""
    path = options.out / "state.pt"
    scenes, drawn = pool.read(options.pool), pool.pixels(options.pool)
    captions = [s["caption"] for s in scenes]
    state = load_state(path)
    if state is None:
        tokenizer = tokenizer_of(captions, art, options.vocabulary)
    else:
        tokenizer = Tokenizer.from_json(state["tokenizer"])
    torch.manual_seed(options.seed)
    clip = towers(tokenizer, art.size)
    optimizer = torch.optim.AdamW(clip.parameters(), options.rate, (0.9, 0.98), weight_decay=0.05)
    first = 0
    if state is not None:
        clip.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    concepts = np.array([s["concepts"][0] for s in scenes])
    by_concept = [
        found for c in range(len(art.concepts)) if len(found := np.flatnonzero(concepts == c))
    ]
    report = Report("clip", options.steps, first, every=20)
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.rate, 40, 0.5)
        index = batch_of(by_concept, rng_of(options.seed, step), options.batch)
        texts = [captions[i] for i in index]
        with autocast(torch.device("cpu")):
            images = clip.embed_images(pool.to_pixels(drawn[index])).float()
            read = clip.embed_texts(tokenizer(texts, padded=False)).float()
        same = torch.tensor([[a == b for b in texts] for a in texts])
        loss = contrastive_loss(images, read, clip.scale, same)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        hits = (images @ read.T).argmax(1) == torch.arange(len(images))
        report(step, options.batch, loss=loss.detach(), accuracy=hits.float().mean())
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            whole = {
                "model": clip.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
                "tokenizer": tokenizer.to_json(),
                "size": art.size,
            }
            save_state(path, whole)
    return path


def trained(path: Path) -> tuple[CLIP, Tokenizer]:
    """The towers and the tokenizer that `train` left at `path`."""
    state = load_state(path)
    if state is None:
        raise ValueError(f"{path}: no trained CLIP there")
    tokenizer = Tokenizer.from_json(state["tokenizer"])
    clip = towers(tokenizer, state["size"])
    clip.load_state_dict(state["model"])
    return clip.eval(), tokenizer


@torch.no_grad()
def read(tower: TextTower, tokenizer: Tokenizer, folder: Path) -> None:
    """The vectors of a pool's captions, into ``tokens.npy`` and ``pooled.npy``; complete ones stay."""
    done = folder / "pooled.npy"
    if done.is_file():
        return
    captions = [s["caption"] for s in pool.read(folder)]
    tokens: np.memmap | None = None
    pooled = []
    for start in range(0, len(captions), 250):
        cond = encode(tower, tokenizer, captions[start : start + 250], words=True)
        assert cond.pooled is not None
        if tokens is None:
            shape = (len(captions), *cond.tokens.shape[1:])
            tokens = np.lib.format.open_memmap(folder / "tokens.npy", "w+", np.float16, shape)
        tokens[start : start + 250] = cond.tokens.half().numpy()
        pooled.append(cond.pooled.half().numpy())
    assert tokens is not None
    tokens.flush()
    temporary = folder / "pooled.tmp.npy"
    np.save(temporary, np.concatenate(pooled))
    temporary.replace(done)
