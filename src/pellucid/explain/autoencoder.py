"""The autoencoder explained: a picture encoded and decoded, what is lost, and its latents."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from pellucid import tiling
from pellucid.conditioning import StepConditioning, encode_prompts
from pellucid.explain.operations import count_operations, on_meta
from pellucid.html.records import Picture, Record
from pellucid.images.pixels import to_pil, to_tensor
from pellucid.model import Model
from pellucid.preview import colors_of
from pellucid.progress import stage
from pellucid.request.sizes import unit_of
from pellucid.runtime import Runtime
from pellucid.vae import VAE, psnr

MOST_PIXELS = 2**20
"""A larger picture is reduced, because it would take minutes and several GB."""
WHOLE_BYTES = 2**30
"""What needs more memory than this in one piece is computed in tiles."""


class Channel(Record):
    """One channel of the scaled latents."""

    mean: float
    deviation: float
    picture: Picture
    """The values: black is three standard deviations below the mean, white three above."""


class Cost(Record):
    """What the latents save and cost, in operations as `count_operations` counts them."""

    pixel_values: int
    latent_values: int
    pixel_bytes: int
    """At 8 bits a value."""
    latent_bytes: int
    """At 16 bits a value."""
    encode: int
    """Operations of the encoder."""
    decode: int
    """Operations of the decoder."""
    latent_operations: Annotated[int, Field(validation_alias="latent_look")]
    """Operations of the denoising network in one evaluation on the latents."""
    pixel_operations: Annotated[int | None, Field(validation_alias="pixel_look")]
    """On an input as large as the picture; None if the network does not support that size."""
    evaluations: Annotated[int, Field(validation_alias="looks")]
    """Network evaluations for a picture by the model's defaults: steps, twice with guidance."""


class RoundTrip(Record):
    """A picture through the autoencoder and back."""

    source: str
    size: tuple[int, int]
    """Width and height of the original."""
    fitted: str
    """How its size was changed, in words."""
    model: str
    picture: Picture
    decoded: Picture
    difference: Picture
    """Of the two, scaled so that the largest difference is 255."""
    largest: int
    """That difference, of 255."""
    psnr: float
    """dB; infinite if nothing was lost."""
    scale: float
    """The factor that gives the encoder's output about unit standard deviation."""
    colours: Picture | None
    """A linear estimate of the colour at each position; None if none is known."""
    channels: tuple[Channel, ...]
    cost: Cost


@torch.no_grad()
def round_trip(model: Model, image: Image.Image, source: str = "picture") -> RoundTrip:
    """Encode, decode, compare. source: the name of the picture.

    The picture keeps its size where it can: it is scaled down to `MOST_PIXELS`, up to one latent,
    and cropped to whole latents. Raises ValueError if the result is not finite.
    """
    picture, fitted = fit_to_latents(image, unit_of(model))
    pixels = to_tensor(picture)[None].to(next(model.vae.parameters()))
    large = model.vae.working_bytes(*picture.size) > WHOLE_BYTES
    tile_size = tiling.TILE_SIZE if large else None
    with stage("encoding the picture"):
        latents = model.vae.to_latents(pixels, tile_size=tile_size)
    with stage("decoding the picture"):
        decoded = to_pil(model.vae.to_pixels(latents, tile_size)[0])
    difference = (to_tensor(decoded) - to_tensor(picture)).abs() * 127.5
    largest = round(float(difference.max()))
    colours = colors_of(model)
    return RoundTrip(
        source=source,
        size=image.size,
        fitted=fitted,
        model=model.name,
        picture=picture,
        decoded=decoded,
        difference=to_pil(difference / max(largest, 1) * 2 - 1),
        largest=largest,
        psnr=psnr(to_tensor(decoded)[None], to_tensor(picture)[None]),
        scale=model.vae.config.scaling_factor,
        colours=None if colours is None else to_pil(colours(latents.float())[0]),
        channels=tuple(describe_channel(values) for values in latents[0].float()),
        cost=count_cost(model, *picture.size),
    )


def fit_to_latents(image: Image.Image, unit: int) -> tuple[Image.Image, str]:
    """The picture with sides that are multiples of `unit`, and how they were changed, in words."""
    width, height = image.size
    scale = max(unit / min(width, height), min(1.0, math.sqrt(MOST_PIXELS / (width * height))))
    changes = [f"{width}x{height}"]
    if scale != 1:
        width, height = (max(unit, round(side * scale)) for side in (width, height))
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        changes.append(f"scaled to {width}x{height}")
    across, down = width // unit * unit, height // unit * unit
    if (across, down) != (width, height):
        left, top = (width - across) // 2, (height - down) // 2
        image = image.crop((left, top, left + across, top + down))
        changes.append(f"cropped to {across}x{down}")
    return image, ", ".join(changes)


def describe_channel(values: Tensor) -> Channel:
    """values: (h, w)."""
    mean, deviation = float(values.mean()), float(values.std(correction=0))
    grey = (values - mean) / (3 * max(deviation, 1e-9))
    return Channel(mean=mean, deviation=deviation, picture=to_pil(grey.expand(3, *grey.shape)))


def count_cost(model: Model, width: int, height: int) -> Cost:
    """For a picture of width x height pixels, multiples of `unit_of(model)`."""
    config = model.vae.config
    across, down = width // config.downsample, height // config.downsample
    vae: VAE = on_meta(model.vae)
    pixels = torch.empty(1, config.in_channels, height, width, device="meta")
    latents = torch.empty(1, config.latent_channels, down, across, device="meta")
    guided = model.defaults.guidance != 1
    return Cost(
        pixel_values=pixels.numel(),
        latent_values=latents.numel(),
        pixel_bytes=pixels.numel(),
        latent_bytes=2 * latents.numel(),
        encode=count_operations(lambda: vae.encode(pixels)),
        decode=count_operations(lambda: vae.decode(latents)),
        latent_operations=network_operations(model, across, down),
        pixel_operations=_pixel_operations(model, width, height),
        evaluations=model.defaults.steps * (2 if guided else 1),
    )


def network_operations(model: Model, width: int, height: int) -> int:
    """Operations of one evaluation on an input of width x height, with an empty prompt."""
    network: Any = on_meta(model.backbone)
    channels = network.config.in_channels
    x = torch.empty(1, channels, height, width, device="meta")
    empty = StepConditioning([(encode_prompts(Runtime(model), [""]), 1.0)], None)
    cond = empty.at_size(model, width, height).conds[0][0].to("meta")
    return count_operations(lambda: network(x, torch.zeros(1, device="meta"), cond))


def _pixel_operations(model: Model, width: int, height: int) -> int | None:
    try:
        return network_operations(model, width, height)
    except ValueError:  # a transformer's position embedding has a limited size
        return None
