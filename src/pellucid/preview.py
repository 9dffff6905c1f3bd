"""Previews of latents: decoded, decoded by the tiny autoencoder, or by their colors alone.

The color at a position is mostly a linear function of the latents there, so a matrix from channels to
red, green and blue gives a small picture that shows the progress (keturn 2022,
discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling/23204).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pellucid.images.pixels import to_pil
from pellucid.model import Model
from pellucid.plugins import choose
from pellucid.runtime import Runtime
from pellucid.tiny_vae import TinyVAE
from pellucid.vae import VAE

PREVIEWS = ("auto", "linear", "tiny", "vae")

# A decoder with at most this many parameters is fast enough for every step. Stable Diffusion's has 49
# million, the tiny one 1.2.
QUICK_PARAMETERS = 5_000_000


class Colors(NamedTuple):
    """Scaled latents (..., C) @ factors (C, 3) + bias (3,) are pixels in [-1, 1]."""

    factors: Tensor
    bias: Tensor

    def __call__(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) -> pixels (B, 3, h, w)."""
        factors, bias = self.factors.to(latents), self.bias.to(latents)
        return torch.einsum("bchw,cd->bdhw", latents, factors) + bias[:, None, None]


def colors_of(model: Model) -> Colors | None:
    """The colors of a model's latents; None if they are not known.

    The weights of an autoencoder with a linear shortcut give them; `model.latents` has the others.
    """
    vae, config = model.vae, model.vae.config
    if config.shortcut:
        layer, f = vae.decoder_shortcut, config.downsample
        assert layer.bias is not None
        # The mean over the pixels of a position, as if its neighbours were the same.
        weight = layer.weight.detach().sum((2, 3)).unflatten(0, (-1, f * f)).mean(1)  # (3, C)
        bias = layer.bias.detach().unflatten(0, (-1, f * f)).mean(1)
        shift = weight.sum(1) * config.shift_factor
        return Colors(weight.T / config.scaling_factor, bias + shift)
    known = model.latents.colors
    return None if known is None else Colors(torch.tensor(known), torch.zeros(3))


def is_quick(vae: VAE) -> bool:
    """Whether decoding every step is fast enough."""
    return sum(p.numel() for p in vae.decoder.parameters()) <= QUICK_PARAMETERS


def decoder_of(model: Model, decoder: str) -> VAE | TinyVAE:
    """The autoencoder, or the tiny one. An autoencoder that is as fast as a tiny one takes its place.
    ValueError if there is none."""
    if decoder == "vae" or (model.tiny_vae is None and is_quick(model.vae)):
        return model.vae
    if model.tiny_vae is None:
        name = model.latents.tiny_vae
        file = "" if name is None else f", such as {name}_decoder.safetensors"
        raise ValueError(
            f"decoder is {decoder!r}, and {model.title} has no tiny autoencoder: one for "
            f"{model.vae.config.latent_channels} latent channels must be next to the model or "
            f"given as tiny_vae{file}"
        )
    return model.tiny_vae


@torch.no_grad()
def pictures(runtime: Runtime, latents: Tensor, decoder: str = "vae") -> list[Image.Image]:
    """Scaled latents (B, C, h, w) as pictures; decoder: "vae" or "tiny". Raises NotFinite."""
    pixels = runtime.decode(decoder_of(runtime.model, decoder), latents)
    return [to_pil(picture) for picture in pixels.float()]


def preview(model: Model, latents: Tensor, how: str = "auto") -> list[Image.Image]:
    """x_t or x0 of any step as pictures; for x_t the decoder gets noise.

    how: "vae" or "tiny" decodes; "linear" shows only the color at each position, without a decoder.
    "auto" is the autoencoder if that is fast, else the tiny one if there is one, else linear if the
    colors of the latents are known. ValueError: not finite, or a decoder or colors that are missing.
    """
    choose(how, PREVIEWS, "preview")
    if not math.isfinite(float(latents.abs().max())):
        raise ValueError("the latents are not finite")
    colors = colors_of(model)
    if how == "auto":
        slow = "vae" if colors is None else "linear"
        quick = is_quick(model.vae)
        how = "vae" if quick else slow if model.tiny_vae is None else "tiny"
    if how != "linear":
        return pictures(Runtime(model), latents, how)
    if colors is None:
        raise ValueError(f"the colors of the latents of {model.title} are not known; decode them")
    f = model.vae.config.downsample
    size = (latents.shape[3] * f, latents.shape[2] * f)
    smooth = Image.Resampling.BICUBIC
    return [to_pil(small).resize(size, smooth) for small in colors(latents.float())]
