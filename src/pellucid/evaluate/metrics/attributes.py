"""Colours of things and of grounds, and styles, over the common concepts.

Half of the combinations are held out of training, as `data.emoji.held_out` says; they are reported
on their own as well.
"""

from __future__ import annotations

import colorsys

import numpy as np
import torch
from torch import Tensor

from pellucid.data.emoji import COLORS, SHADES, TINTS, held_out, with_article, with_color
from pellucid.evaluate.evaluation import Evaluation, read_prompts

HUES = {c: colorsys.rgb_to_hsv(*(v / 255 for v in COLORS[c]))[0] * 360 for c in TINTS}
GROUND = 0.9  # what is lighter is white ground, in [-1, 1]
RIM = 6  # pixels at each edge that show the ground


def measure(evaluation: Evaluation) -> dict[str, float]:
    """Fractions of the prompts whose colour, thing or style is right."""
    kinds = colors(evaluation, "tint") | colors(evaluation, "ground") | shades(evaluation)
    return kinds | style(evaluation)


def colors(evaluation: Evaluation, kind: str) -> dict[str, float]:
    """Of things in another colour ("tint") or of coloured grounds ("ground")."""
    prompts = read_prompts("common")[::2]
    words = [TINTS[i % len(TINTS)] for i in range(len(prompts))]
    texts = [
        with_color(p.concept, word)
        if kind == "tint"
        else f"{p.text} on {with_article(word)} background"
        for p, word in zip(prompts, words, strict=True)
    ]
    pixels = evaluation.pixels(texts, seed=1000)
    rim = torch.ones(pixels.shape[-2:], dtype=torch.bool)
    rim[RIM:-RIM, RIM:-RIM] = False
    # For tinted objects, every pixel that is not background.
    where = [picture.mean(0) < GROUND if kind == "tint" else rim for picture in pixels]
    hues = [dominant_hue(*pair) for pair in zip(pixels, where, strict=True)]
    numbers = [evaluation.numbers[p.concept] for p in prompts]
    hue = np.array([a == b for a, b in zip(hues, words, strict=True)])
    kept = np.equal(numbers, evaluation.things(pixels))
    unseen = np.array([held_out(n, word) for n, word in zip(numbers, words, strict=True)])
    return {
        f"{kind}: right hue": float(hue.mean()),
        f"{kind}: concept kept": float(kept.mean()),
        f"{kind}: right hue, combinations held out": float(hue[unseen].mean()),
        f"{kind}: combinations held out, number": float(unseen.sum()),
    }


def shades(evaluation: Evaluation) -> dict[str, float]:
    """Of things in gray, black and white, the colours without a hue."""
    prompts, words = read_prompts("common")[1::2], list(SHADES)
    texts = [with_color(p.concept, words[i % len(words)]) for i, p in enumerate(prompts)]
    pixels = evaluation.pixels(texts, seed=3000)
    kept = np.equal([evaluation.numbers[p.concept] for p in prompts], evaluation.things(pixels))
    spread = [(p.amax(0) - p.amin(0))[p.mean(0) < GROUND] for p in pixels]  # of red, green and blue
    gray = np.array([not len(s) or float(s.mean()) < 0.2 for s in spread])
    return {"shade: no hue": float(gray.mean()), "shade: concept kept": float(kept.mean())}


def style(evaluation: Evaluation) -> dict[str, float]:
    """Of prompts that ask for a style."""
    prompts, styles = read_prompts("common")[::2], evaluation.art.styles
    asked = [i % len(styles) for i in range(len(prompts))]
    texts = [f"{p.text}, {styles[i]} style" for p, i in zip(prompts, asked, strict=True)]
    right = np.equal(asked, evaluation.styles(evaluation.pixels(texts, seed=2000)))
    return {"style obeyed": float(right.mean())}


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
