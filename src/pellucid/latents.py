"""Where a pass begins: noise, a noisy picture, or the enlarged result of the pass before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Generator, Tensor

from pellucid import hires, inpaint
from pellucid.diffusion import add_noise
from pellucid.images.pixels import to_tensor
from pellucid.inpaint import Canvas
from pellucid.noise import draw, generators, slerp
from pellucid.preview import pictures
from pellucid.request import ResolvedRequest
from pellucid.request.resolved import SecondPass
from pellucid.request.sizes import unit_of
from pellucid.runtime import Runtime
from pellucid.schedule import UNIT_NOISE, Level
from pellucid.upscale import DiffusionUpscaler, enlarged


class Begin(NamedTuple):
    """Where a pass begins."""

    x: Tensor
    """The noisy latents, (count, C, h, w)."""
    x0: Tensor
    """The clean latents of the picture to start from; without one, x."""
    size: tuple[int, int]
    """Width and height in pixels."""
    streams: list[Generator]
    """The random generator of each image; the sampler continues with it."""
    canvas: Canvas | None = None


def first_pass(
    runtime: Runtime, request: ResolvedRequest, canvas: Canvas | None, level: Level
) -> Begin:
    """Noise, or the picture with noise."""
    size = request.drawn_size if canvas is None else canvas.size
    streams = streams_of(request.seeds)
    noise = first_noise(runtime, request, size, streams)
    pure = noise if request.spacing in UNIT_NOISE else level.sigma * noise
    if canvas is None:
        return Begin(pure, pure, size, streams)
    x0 = runtime.encode(canvas.pixels).expand_as(noise)
    if canvas.mask is not None and request.strength == 1:  # as in diffusers, x0 is ignored
        return Begin(pure, x0, size, streams, canvas)
    filled = x0
    if canvas.mask is not None:
        weights = canvas.latent_weights(runtime.model.vae.config.downsample).to(x0)
        if request.inpaint_fill == "fill":
            smooth = inpaint.surroundings(canvas.pixels, 1 - canvas.weights)
            filled = runtime.encode(smooth).expand_as(noise)
        elif request.inpaint_fill == "noise":
            other = draw(request.noise, tuple(noise.shape[1:]), streams).to(noise)
            filled = torch.lerp(x0, other, weights)
        elif request.inpaint_fill == "blank":
            filled = x0 * (1 - weights)
    return Begin(add_noise(filled, noise, level.alpha, level.sigma), x0, size, streams, canvas)


def second_pass(
    runtime: Runtime, request: ResolvedRequest, second: SecondPass, latents: Tensor, level: Level
) -> Begin:
    """The latents of the first pass, enlarged, with new noise of the same seeds."""
    size, x0 = enlarge(runtime, request, second, latents)
    streams = streams_of(request.seeds)
    noise = first_noise(runtime, request, size, streams)
    return Begin(add_noise(x0, noise, level.alpha, level.sigma), x0, size, streams)


def streams_of(seeds: Iterable[int]) -> list[Generator]:
    """The randomness of each image."""
    return [generators(seed, 1)[0] for seed in seeds]


def first_noise(
    runtime: Runtime, request: ResolvedRequest, size: tuple[int, int], streams: Sequence[Generator]
) -> Tensor:
    """The noise of each seed, (count, C, h, w), where the network is; size: width, height."""
    config = runtime.model.vae.config
    shape = (config.latent_channels, *(side // config.downsample for side in reversed(size)))
    noise = draw(request.noise, shape, streams)
    if request.variation_strength > 0:
        other = request.seed + 1 if request.variation_seed is None else request.variation_seed
        offset = other - request.seed
        towards = draw(request.noise, shape, streams_of(seed + offset for seed in request.seeds))
        noise = slerp(noise, towards, request.variation_strength)
    return noise.to(runtime.device, runtime.latent_dtype)


def enlarge(
    runtime: Runtime, request: ResolvedRequest, second: SecondPass, latents: Tensor
) -> tuple[tuple[int, int], Tensor]:
    """Width and height of the second pass in pixels, and the clean latents enlarged to it."""
    model = runtime.model
    unit, down = unit_of(model), model.vae.config.downsample
    height, width = (round(side * down * second.scale / unit) * unit for side in latents.shape[2:])
    if second.upscaler in hires.LATENT:
        x0 = hires.enlarge_latents(latents, width // down, height // down, second.upscaler)
        return (width, height), x0
    drawn = pictures(runtime, latents, request.decoder)
    filter = hires.PICTURE.get(second.upscaler, Image.Resampling.LANCZOS)
    if second.upscaler not in hires.PICTURE:
        upscaler = model.upscaler  # `adapt` has opened it, if it is in another file
        if upscaler is None:
            assert model.second_stage is not None
            upscaler = DiffusionUpscaler(model.second_stage)
        drawn = [enlarged(upscaler, picture) for picture in drawn]
    larger = [to_tensor(picture.resize((width, height), filter)) for picture in drawn]
    return (width, height), runtime.encode(torch.stack(larger))
