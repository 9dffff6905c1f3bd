"""A model's parts at work: each on the device when its turn comes, looked after, in strips if need be.

What a part did otherwise than asked goes into a list of warnings.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pellucid import tiling as strips
from pellucid.clip import TextOutput, TextTower
from pellucid.model import Model
from pellucid.runtime import devices
from pellucid.runtime.precision import Careful, dtype_of, finite
from pellucid.tiny_vae import TinyVAE
from pellucid.vae import VAE


def parts_of(model: Model) -> list[nn.Module]:
    """The networks of a model."""
    parts = (model.backbone, model.vae, model.text, model.text_2, model.vision, model.tiny_vae)
    return [part for part in parts if part is not None]


def device_of(model: Model) -> torch.device:
    """Where the model works: the device that any of its parts is on, the CPU if all are there.

    Parts that had to make room for others are on the CPU meanwhile.
    """
    places = [devices.place(part) for part in parts_of(model)]
    return next((place for place in places if place != devices.HOME), devices.HOME)


def bring(model: Model, part: nn.Module, work: int = 0) -> torch.device:
    """Bring a part to where the model works; `work` is what it needs beside its weights, bytes."""
    device = device_of(model)
    devices.bring(part, parts_of(model), device, work)
    return device


def read(
    model: Model,
    tower: TextTower,
    ids: Tensor,
    layer: int,
    final_norm: bool,
    warnings: list[str],
) -> TextOutput:
    """What a text tower makes of rows of tokens (N, L), in float32 if half precision is not enough.

    layer, final_norm: as `TextTower.forward` takes them. Raises NotFinite.
    """
    rows = ids.to(bring(model, tower))
    name = "the text tower"
    if model.text_2 is not None:
        name = f"the {'second' if tower is model.text_2 else 'first'} text tower"
    output, warning = finite(name, tower, lambda: tower(rows, layer, final_norm))
    if warning is not None:
        warnings.append(warning)
    return output


def network(model: Model, warnings: list[str]) -> Careful:
    """The backbone, which goes over to float32 if half precision is not enough for it."""
    bring(model, model.backbone)
    return Careful(model.backbone, "the network", warnings)


def decode(model: Model, part: VAE | TinyVAE, latents: Tensor, warnings: list[str]) -> Tensor:
    """Scaled latents (B, C, h, w) -> pixels (B, 3, H, W), by one of the model's decoders.

    Raises NotFinite, which holds the latents, where they can't be decoded.
    """
    height, width = (side * part.config.downsample for side in latents.shape[2:])

    def run() -> Tensor:
        z = latents.to(device, dtype_of(part))
        if isinstance(part, VAE):
            return part.to_pixels(z, places_for(part, width, height, device))
        return part.to_pixels(z)

    device = bring(model, part, _least(part, width, height))
    return _looked_after("the decoder", part, run, latents, warnings)


def encode(model: Model, pixels: Tensor, warnings: list[str]) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> scaled latents, of the network's type and where it works."""
    vae = model.vae
    height, width = pixels.shape[2:]

    def run() -> Tensor:
        x = pixels.to(device, dtype_of(vae))
        return vae.to_latents(x, places=places_for(vae, width, height, device))

    device = bring(model, vae, _least(vae, width, height))
    latents = _looked_after("the encoder", vae, run, None, warnings)
    return latents.to(dtype_of(model.backbone))


def places_for(vae: VAE, width: int, height: int, device: torch.device) -> int | None:
    """How many places a strip has where a picture would not fit in memory whole; None where it does,
    and where that can't be known."""
    free = devices.free_memory(device)
    if free is None or vae.working_bytes(width, height) <= free:
        return None
    return strips.PLACES


def _least(part: VAE | TinyVAE, width: int, height: int) -> int:
    """Bytes that should be free for decoding a picture, in strips if need be."""
    return part.working_bytes(width, height) // 4 if isinstance(part, VAE) else 0


def _looked_after(
    name: str,
    part: nn.Module,
    run: Callable[[], Tensor],
    latents: Tensor | None,
    warnings: list[str],
) -> Tensor:
    result, warning = finite(name, part, run, latents)
    if warning is not None:
        warnings.append(warning)
    return result
