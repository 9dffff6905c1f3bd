"""Train CLIP: pictures and captions to one space, by the symmetric contrastive loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from pellucid.clip import CLIP, TextConfig, VisionConfig, contrastive_loss
from pellucid.data.emoji import Mix, compose
from pellucid.data.imagefolder import Folder
from pellucid.tokenizer import Tokenizer
from pellucid.train import pictures
from pellucid.train.loop import (
    Report,
    autocast,
    check,
    device_of,
    learning_rate,
    load_state,
    rng_of,
    save_state,
)

CONTEXT = 24
PATCH = 8
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
    data: str = ""
    """A folder of pictures with captions to learn from in place of the art."""
    size: int = 64
    """What a folder's pictures are scaled to; the art has a size of its own."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1, mps."""
    seed: int = 0
    resume: bool = False


def train_tokenizer(source: pictures.Source, vocabulary: int, count: int, seed: int) -> Tokenizer:
    """A byte-pair vocabulary of the captions; unknown words fall back to pieces and bytes."""
    if isinstance(source, Folder):
        return Tokenizer.train(source.captions, vocabulary, CONTEXT)
    rng = rng_of(seed, 0, 5)
    captions = [compose(source, rng, MIX).caption for _ in range(count)]
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
        patch_size=PATCH,
        width=128,
        layers=3,
        heads=4,
        mlp_width=512,
        activation="quick_gelu",
        projection=192,
    )
    return CLIP(text, vision)


def train(options: CLIPOptions) -> Path:
    """Run the loop; returns the path of the saved model.

    A killed or interrupted run leaves the state of its last save; with ``resume`` it goes on from
    there, bit for bit as if unbroken (on a CPU, with the same options and number of threads). A run
    that has done its steps already is only finished off.
    """
    check(options)
    device = device_of(options.device)
    source = pictures.load(options.art, options.data, options.size)
    tokenizer = train_tokenizer(source, options.vocabulary, options.captions, options.seed)
    torch.manual_seed(options.seed)
    clip = emoji_clip(tokenizer, source.size).to(device)
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
        pixels, captions = pictures.distinct(source, options.batch, rng_of(options.seed, step), MIX)
        with autocast(device):
            images = clip.embed_images(pixels.to(device)).float()
            texts = clip.embed_texts(tokenizer(captions, padded=False).to(device)).float()
        # In a folder two pictures may have one caption; they are not pushed apart.
        same = torch.tensor([[a == b for b in captions] for a in captions], device=device)
        loss = contrastive_loss(images, texts, clip.scale, same)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        hits = (images @ texts.T).argmax(1) == torch.arange(len(images), device=device)
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


def trained(path: Path) -> tuple[CLIP, Tokenizer]:
    """The towers and the tokenizer that `train` left at `path`, on the CPU."""
    state = load_state(path)
    if state is None:
        raise ValueError(f"{path}: no trained CLIP there; run `pellucid train clip` first")
    tokenizer = Tokenizer.from_json(state["tokenizer"])
    # One position for every patch and one for the class token tell the size of the pictures.
    places = state["model"]["vision.vision_model.embeddings.position_embedding.weight"].shape[0]
    clip = emoji_clip(tokenizer, math.isqrt(places - 1) * PATCH)
    clip.load_state_dict(state["model"])
    return clip.eval(), tokenizer
