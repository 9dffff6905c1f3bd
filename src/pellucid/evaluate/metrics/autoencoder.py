"""What the autoencoder loses."""

from __future__ import annotations

import numpy as np
import torch

from pellucid.data import to_pixels
from pellucid.data.emoji import Mix, compose
from pellucid.evaluate.evaluation import Evaluation
from pellucid.vae import psnr


@torch.no_grad()
def measure(evaluation: Evaluation, count: int = 100) -> dict[str, float]:
    """Mean PSNR of pictures of held-out combinations through the autoencoder, dB."""
    rng, vae = np.random.default_rng(11), evaluation.model.vae
    mix = Mix(0.3, 0.3, 0.3)
    drawn = [compose(evaluation.art, rng, mix, held=True).pixels for _ in range(count)]
    pixels = to_pixels(drawn)
    figure = psnr(vae.to_pixels(vae.to_latents(pixels)), pixels)
    return {"autoencoder PSNR on held-out pictures, dB": figure}
