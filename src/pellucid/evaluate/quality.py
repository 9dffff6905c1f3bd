"""Does the picture show what the prompt says? All the figures of `pellucid evaluate`."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pellucid.clip import CLIP, retrieve
from pellucid.data.emoji import (
    COLORS,
    TINTS,
    EmojiArt,
    Mix,
    compose,
    held_out,
    with_article,
    with_color,
)
from pellucid.evaluate.classifier import Classifier
from pellucid.images.pixels import to_tensor
from pellucid.model import Model
from pellucid.pipeline import Request, generate

HUES = {c: colorsys.rgb_to_hsv(*(v / 255 for v in COLORS[c]))[0] * 360 for c in TINTS}


@dataclass(frozen=True)
class Prompt:
    """One line of ``prompts.tsv``."""

    kind: str
    text: str
    concept: str


def read_prompts(kind: str) -> list[Prompt]:
    """The prompts of a set: "common" or "everyday"."""
    text = resources.files("pellucid.evaluate").joinpath("prompts.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines() if line and line[0] != "#"]
    return [Prompt(*row) for row in rows if row[0] == kind]


def pictures(
    model: Model, prompts: Iterable[str], seed: int = 0, **fields: Any
) -> list[Image.Image]:
    """One picture for each prompt; prompt i has the seed `seed + i`."""
    drawn = []
    for i, prompt in enumerate(prompts):
        *_, last = generate(model, Request(prompt=prompt, seed=seed + i, **fields))
        assert last.images is not None
        drawn.append(last.images[0])
    return drawn


def stack(drawn: Iterable[Image.Image], size: int = 64) -> Tensor:
    """(B, 3, size, size) in [-1, 1]."""
    tensors = [to_tensor(p) for p in drawn]
    return torch.stack(
        [
            t if t.shape[-1] == size else F.interpolate(t[None], size=size, mode="area")[0]
            for t in tensors
        ]
    )


def dominant_hue(picture: Tensor, where: Tensor) -> str | None:
    """The colour word whose hue is nearest to the saturation-weighted mean hue of some pixels.

    picture: (3, h, w) in [-1, 1]; where: (h, w) bool. None where the pixels are nearly grey.
    """
    rgb = ((picture + 1) / 2).clamp(0, 1)[:, where].numpy()  # (3, n)
    high, low = rgb.max(0), rgb.min(0)
    weight = (high - low) * (high > 0.15)
    if len(weight) == 0 or weight.mean() < 0.05:
        return None
    hue = np.array([colorsys.rgb_to_hsv(*p)[0] for p in rgb.T]) * 2 * np.pi
    angle = np.angle((weight * np.exp(1j * hue)).sum()) * 180 / np.pi % 360
    return min(HUES, key=lambda c: min(abs(HUES[c] - angle), 360 - abs(HUES[c] - angle)))


@torch.no_grad()
def named(classifier: Classifier, pixels: Tensor) -> list[int]:
    """The thing that the classifier names in each picture."""
    return classifier(pixels)[0].argmax(1).tolist()


def index_of(art: EmojiArt) -> dict[str, int]:
    """First name -> number of the concept."""
    return {c.names[0]: i for i, c in enumerate(art.concepts)}


def judge(art: EmojiArt, classifier: Classifier, count: int = 200) -> dict[str, float]:
    """How often the judge itself is right, of real pictures of the common concepts."""
    kinds = {"plain": Mix(0, 0, 0, 0), "tint": Mix(1, 0, 0, 0), "ground": Mix(0, 1, 0, 0)}
    names = {p.concept for p in read_prompts("common")}
    among = [i for i, c in enumerate(art.concepts) if c.names[0] in names]
    out: dict[str, float] = {}
    for number, (kind, mix) in enumerate(kinds.items()):
        rng = np.random.default_rng([13, number])
        samples = [compose(art, rng, mix, held=True, among=among) for _ in range(count)]
        pixels = torch.stack([torch.from_numpy(s.pixels) for s in samples])
        with torch.no_grad():
            thing, style = classifier(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
        right = [s.concepts[0] == g for s, g in zip(samples, thing.argmax(1).tolist(), strict=True)]
        out[f"judge, real pictures: concept, {kind}"] = float(np.mean(right))
        if kind == "plain":
            right = [s.style == g for s, g in zip(samples, style.argmax(1).tolist(), strict=True)]
            out["judge, real pictures: style"] = float(np.mean(right))
    return out


def concept_rate(
    model: Model, art: EmojiArt, classifier: Classifier, kind: str, **fields: Any
) -> tuple[float, list[Image.Image], list[str]]:
    """Share of a set's prompts whose picture the classifier names right, the pictures, the misses."""
    prompts = read_prompts(kind)
    places = index_of(art)
    drawn = pictures(model, [p.text for p in prompts], **fields)
    seen = named(classifier, stack(drawn, art.size))
    misses = [
        f"{p.text} -> {art.concepts[s].names[0]}"
        for p, s in zip(prompts, seen, strict=True)
        if s != places[p.concept]
    ]
    return 1 - len(misses) / len(prompts), drawn, misses


def attributes(model: Model, art: EmojiArt, classifier: Classifier) -> dict[str, float]:
    """Colours of things and of grounds, and styles, over the common concepts, seed by seed.

    The combinations are half held out of training and half not, as `data.emoji.held_out` says;
    the held-out half is reported on its own as well.
    """
    prompts = read_prompts("common")[::2]
    places = index_of(art)
    out: dict[str, float] = {}
    for what in ("tint", "ground"):
        words = [TINTS[i % len(TINTS)] for i in range(len(prompts))]
        texts = [
            with_color(p.concept, w)
            if what == "tint"
            else f"{p.text} on {with_article(w)} background"
            for p, w in zip(prompts, words, strict=True)
        ]
        drawn = stack(pictures(model, texts, seed=1000), art.size)
        hue, kept, unseen = [], [], []
        seen = named(classifier, drawn)
        for i, (p, w) in enumerate(zip(prompts, words, strict=True)):
            if what == "tint":
                where = drawn[i].mean(0) < 0.9  # not the white ground
            else:
                where = torch.ones(drawn.shape[-2:], dtype=torch.bool)
                where[6:-6, 6:-6] = False  # the rim
            hue.append(dominant_hue(drawn[i], where) == w)
            kept.append(seen[i] == places[p.concept])
            unseen.append(held_out(places[p.concept], w))
        out[f"{what}: right hue"] = float(np.mean(hue))
        out[f"{what}: concept kept"] = float(np.mean(kept))
        out[f"{what}: right hue, combinations held out"] = float(np.mean(np.array(hue)[unseen]))
        out[f"{what}: combinations held out, number"] = float(np.sum(unseen))
    styles = [art.styles[i % len(art.styles)] for i in range(len(prompts))]
    texts = [f"{p.text}, {s} style" for p, s in zip(prompts, styles, strict=True)]
    with torch.no_grad():
        guess = classifier(stack(pictures(model, texts, seed=2000), art.size))[1].argmax(1)
    right = [art.styles[g] == s for g, s in zip(guess.tolist(), styles, strict=True)]
    out["style obeyed"] = float(np.mean(right))
    return out


def two_objects(model: Model, art: EmojiArt, classifier: Classifier, count: int = 40) -> float:
    """Share of two-thing prompts in which both are named, each in its half of the picture."""
    prompts = read_prompts("common")
    places = index_of(art)
    rng = np.random.default_rng(3)
    both = []
    for i in range(count):
        a, b = rng.choice(len(prompts), 2, replace=False)
        word = ("and", "above")[i % 2]
        text = f"{prompts[a].text} {word} {prompts[b].text}"
        drawn = stack(pictures(model, [text], seed=3000 + i), art.size)
        h = art.size // 2
        if word == "and":
            parts = (drawn[:, :, h // 2 : h // 2 + h, :h], drawn[:, :, h // 2 : h // 2 + h, h:])
        else:
            parts = (drawn[:, :, :h, h // 2 : h // 2 + h], drawn[:, :, h:, h // 2 : h // 2 + h])
        large = F.interpolate(torch.cat(parts), size=art.size, mode="bilinear")
        wanted = {places[prompts[a].concept], places[prompts[b].concept]}
        both.append(set(named(classifier, large)) == wanted)
    return float(np.mean(both))


def novelty(model: Model, art: EmojiArt, count: int = 40) -> dict[str, float]:
    """Distances (root mean square over pixels, range 0..2): is it more than a copy?"""
    prompts = read_prompts("common")[:count]
    places = index_of(art)
    everything = torch.from_numpy(art.pixels.reshape(-1, *art.pixels.shape[2:])).float()
    alpha = everything[..., 3:] / 255
    training = (everything[..., :3] * alpha + 255 * (1 - alpha)).permute(0, 3, 1, 2) / 127.5 - 1
    training = torch.cat([training, training.flip(3)]).flatten(1)
    first = stack(pictures(model, [p.text for p in prompts]), art.size).flatten(1)
    second = stack(pictures(model, [p.text for p in prompts], seed=500), art.size).flatten(1)
    width = training.shape[1] ** 0.5
    nearest = torch.cdist(first, training).amin(1) / width
    seeds = (first - second).norm(dim=1) / width
    plain = training[: len(art.concepts) * len(art.styles)].view(
        len(art.concepts), len(art.styles), -1
    )
    own = plain[[places[p.concept] for p in prompts]]
    styles = torch.stack([torch.pdist(one).mean() for one in own]) / width
    return {
        "distance to the nearest training picture, median": float(nearest.median()),
        "distance between two seeds, mean": float(seeds.mean()),
        "distance between styles of a concept in training, mean": float(styles.mean()),
        "seeds / styles": float(seeds.mean() / styles.mean()),
    }


@torch.no_grad()
def autoencoder_psnr(model: Model, art: EmojiArt, count: int = 100) -> float:
    """Mean PSNR of pictures of held-out combinations through the autoencoder. dB."""
    from pellucid.train.pictures import draw
    from pellucid.vae import psnr

    pixels, _ = draw(art, count, np.random.default_rng(11), Mix(0.3, 0.3, 0.3), held=True)
    return psnr(model.vae.to_pixels(model.vae.to_latents(pixels)), pixels)


def clip_recall(model: Model, art: EmojiArt, trials: int = 5) -> float:
    """Share of held-out captions whose picture is among the first 5 of 100."""
    assert model.vision is not None
    clip = CLIP(model.text, model.vision).eval()
    hits = []
    for trial in range(trials):
        rng = np.random.default_rng([12, trial])
        mix = Mix(tinted=0.4, on_color=0.3, pair=0.3)
        chosen = rng.permutation(len(art.concepts))[:100]
        samples = [compose(art, rng, mix, concept=int(c), held=True) for c in chosen]
        pixels = torch.stack([torch.from_numpy(s.pixels) for s in samples])
        ids = model.tokenizer([s.caption for s in samples])
        ranks = retrieve(clip, pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, ids).ranks
        hits.append((ranks < 5).float().mean())
    return float(torch.stack(hits).mean())
