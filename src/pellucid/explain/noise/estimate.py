"""What the model thinks the picture was: one look at it through the noise of every t.

That guess is sharp near t = 0 and a blur near the end, the mean of all pictures that the noise may
hide. This is why a sampler looks many times.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from pellucid.conditioning import conditioning_schedule
from pellucid.diffusion import add_noise
from pellucid.explain.noise.schedules import level_at
from pellucid.html.records import Picture, Record
from pellucid.images.pixels import fit, to_tensor
from pellucid.model import Model
from pellucid.noise import draw, generators
from pellucid.pipeline import denoiser
from pellucid.preview import pictures
from pellucid.request import Request, resolve
from pellucid.runtime import Runtime
from pellucid.vae import psnr


class Estimate(Record):
    """One look from one t."""

    t: float
    """As the network is told it."""
    alpha: float
    sigma: float
    noisy: Picture
    """What the network was given, decoded."""
    guess: Picture
    """Its estimate of the original, decoded."""
    error: float
    """Root mean square of the estimate's latents minus the original's, over that of the latter."""
    psnr: float
    """Of the guess against the picture, dB; infinite if it is the same."""


class Estimates(Record):
    """All looks. The autoencoder alone already loses something: no guess is expected above it."""

    prompt: str
    guidance: float
    prediction: str
    """What the network predicts, one of `diffusion.PREDICTIONS`."""
    picture: Picture
    """The picture at the size of the model."""
    decoded: Picture
    """Through the autoencoder and back, without noise."""
    decoded_psnr: float
    looks: tuple[Estimate, ...]


@torch.no_grad()
def look(
    model: Model,
    image: Image.Image,
    times: Sequence[float],
    prompt: str,
    guidance: float,
    seed: int,
) -> Estimates:
    """The picture is cropped and scaled to the model's size. times: of 1000.

    A time at which there is no picture left, alpha = 0, is left out where the network predicts eps:
    it then says nothing of x0. Raises ValueError for a guidance that is not finite.
    """
    request = resolve(model, Request(prompt=prompt, guidance=guidance, seed=seed))
    assert request.width is not None and request.height is not None
    size = (request.width, request.height)
    picture = fit(image, *size)
    pixels = to_tensor(picture)
    runtime = Runtime(model)  # its warnings are not shown: the page has no place for them
    x0 = runtime.encode(pixels[None])
    eps = draw("gaussian", tuple(x0.shape[1:]), generators(seed, 1)).to(x0)
    plan = [(0.0, step) for step in conditioning_schedule(runtime, request, 1)]
    denoise = denoiser(runtime, request, None, size, None, plan, [])
    looks = []
    for time in times:
        level = level_at(model.schedule, time)
        if level.alpha == 0 and model.prediction == "eps":
            continue
        x = add_noise(x0, eps, level.alpha, level.sigma)
        guess = denoise(x, level)
        noisy, seen = pictures(runtime, torch.cat([x, guess]))
        looks.append(
            Estimate(
                t=level.t,
                alpha=level.alpha,
                sigma=level.sigma,
                noisy=noisy,
                guess=seen,
                error=_size(guess - x0) / _size(x0),
                psnr=psnr(to_tensor(seen)[None], pixels[None]),
            )
        )
    (decoded,) = pictures(runtime, x0)
    return Estimates(
        prompt=prompt,
        guidance=guidance,
        prediction=model.prediction,
        picture=picture,
        decoded=decoded,
        decoded_psnr=psnr(to_tensor(decoded)[None], pixels[None]),
        looks=tuple(looks),
    )


def _size(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
