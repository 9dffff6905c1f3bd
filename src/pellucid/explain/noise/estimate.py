"""The model's estimate of the original picture, in one evaluation from each level of noise.

The estimate is sharp near t = 0 and a blur near the end: the mean of all pictures that the noise
could hide. This is why a sampler evaluates the network many times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from pellucid.conditioning import conditioning_schedule
from pellucid.diffusion import add_noise
from pellucid.explain.noise.schedules import level_at
from pellucid.html.records import Picture, Record
from pellucid.images.pixels import fit, to_tensor
from pellucid.model import Model
from pellucid.noise import draw, generators
from pellucid.pipeline import guides_of
from pellucid.preview import pictures
from pellucid.progress import each
from pellucid.request import Request, resolve
from pellucid.runtime import Runtime
from pellucid.vae import psnr


class Estimate(Record):
    """The estimate from one t."""

    t: float
    """As the network receives it."""
    alpha: float
    sigma: float
    noisy: Picture
    """The network's input, decoded."""
    guess: Picture
    """Its estimate of the original, decoded."""
    error: float
    """Root mean square of the estimate's latents minus the original's, relative to the latter."""
    psnr: float
    """Of the estimate against the picture, dB; infinite if they are equal."""


class Estimates(Record):
    """The estimates from every t. The autoencoder alone loses something: it is the upper bound."""

    prompt: str
    guidance: float
    prediction: str
    """What the network predicts, one of `diffusion.PREDICTIONS`."""
    picture: Picture
    """The picture at the size of the model."""
    decoded: Picture
    """Through the autoencoder and back, without noise."""
    decoded_psnr: float
    by_time: Annotated[tuple[Estimate, ...], Field(validation_alias="looks")]


@torch.no_grad()
def estimate_from_each(
    model: Model,
    image: Image.Image,
    times: Sequence[float],
    prompt: str,
    guidance: float,
    seed: int,
) -> Estimates:
    """The picture is cropped and scaled to the model's size. times: of 1000.

    A time without any picture left, alpha = 0, is skipped if the network predicts eps, which then
    says nothing about x0. Raises ValueError for a guidance that is not finite.
    """
    # The network sees the picture as a whole, so its prompt stays whole too.
    request = resolve(model, Request(prompt=prompt, guidance=guidance, seed=seed, arrange=False))
    request = request.model_copy(update={"open_styles": ()})  # the picture has a style
    size = request.drawn_size
    picture = fit(image, *size)
    pixels = to_tensor(picture)
    runtime = Runtime(model)  # its warnings are not shown: the page has no place for them
    x0 = runtime.encode(pixels[None])
    eps = draw("gaussian", tuple(x0.shape[1:]), generators(seed, 1)).to(x0)
    (guide,) = guides_of(runtime, request, conditioning_schedule(runtime, request, 1), size)
    by_time = []
    for time in each("estimating the picture from each time", times):
        level = level_at(model.schedule, time)
        if level.alpha == 0 and model.prediction == "eps":
            continue
        x = add_noise(x0, eps, level.alpha, level.sigma)
        guess = guide(x, level).guided
        noisy, decoded = pictures(runtime, torch.cat([x, guess]))
        by_time.append(
            Estimate(
                t=level.t,
                alpha=level.alpha,
                sigma=level.sigma,
                noisy=noisy,
                guess=decoded,
                error=_root_mean_square(guess - x0) / _root_mean_square(x0),
                psnr=psnr(to_tensor(decoded)[None], pixels[None]),
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
        by_time=tuple(by_time),
    )


def _root_mean_square(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
