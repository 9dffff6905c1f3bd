"""What latents look like: decoded, decoded by the tiny autoencoder, or by their colours alone.

Most of what a place in the latents says about its colour is linear, so a matrix from channels to
red, green and blue gives a small picture that tells what is going on (keturn 2022,
discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling/23204).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pellucid.images.pixels import to_pil
from pellucid.model import Model
from pellucid.plugins import choose
from pellucid.runtime import Runtime
from pellucid.tiny_vae import TinyVAE, wanted
from pellucid.vae import VAE

PREVIEWS = ("auto", "linear", "tiny", "vae")

# A decoder with no more parameters than this shows every step in no time. Stable Diffusion's has 49
# million, the tiny one 1.2.
QUICK_PARAMETERS = 5_000_000

# (latent channels, scaling factor) -> red, green and blue in [-1, 1] of each channel of the scaled
# latents. They were fitted to decoded photographs, and are here as InvokeAI has them
# (github.com/invoke-ai/InvokeAI, invokeai/app/util/step_callback.py).
FITTED: Mapping[tuple[int, float], tuple[tuple[float, float, float], ...]] = MappingProxyType(
    {
        # SD1 and SD2, by torridgristle
        (4, 0.18215): (
            (0.3444, 0.1385, 0.0670),
            (0.1247, 0.4027, 0.1494),
            (-0.3192, 0.2513, 0.2103),
            (-0.1307, -0.1874, -0.7445),
        ),
        # SDXL, by StAlKeR7779
        (4, 0.13025): (
            (0.3816, 0.4930, 0.5320),
            (-0.3753, 0.1631, 0.1739),
            (0.1770, 0.3588, -0.2048),
            (-0.4350, -0.2644, -0.4289),
        ),
        # SD3 and SD3.5
        (16, 1.5305): (
            (-0.0524, 0.0325, 0.0749),
            (-0.0581, 0.0076, 0.0573),
            (0.1614, 0.0127, -0.0377),
            (0.1442, 0.0846, 0.1594),
            (0.0489, 0.0056, -0.0669),
            (0.0519, 0.1922, 0.0626),
            (0.1539, 0.0482, 0.0710),
            (-0.0860, 0.0901, 0.1089),
            (-0.1240, -0.0677, 0.0034),
            (-0.0440, 0.0783, 0.0226),
            (0.0310, 0.0638, 0.0775),
            (-0.0132, 0.0855, -0.0877),
            (0.0646, 0.0591, 0.1326),
            (-0.0786, -0.0226, -0.1276),
            (-0.0992, -0.0801, -0.0626),
            (-0.0339, -0.0804, -0.0608),
        ),
    }
)


class Colours(NamedTuple):
    """Scaled latents (..., C) @ factors (C, 3) + bias (3,) are pixels in [-1, 1]."""

    factors: Tensor
    bias: Tensor

    def __call__(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) -> pixels (B, 3, h, w)."""
        factors, bias = self.factors.to(latents), self.bias.to(latents)
        return torch.einsum("bchw,cd->bdhw", latents, factors) + bias[:, None, None]


def colours_of(vae: VAE) -> Colours | None:
    """The colours of an autoencoder's latents; None if they are not known.

    An autoencoder with a linear code beside it knows them itself; the others' are `FITTED`.
    """
    config = vae.config
    if config.shortcut:
        layer, f = vae.decoder_shortcut, config.downsample
        assert layer.bias is not None
        # The mean over the pixels that a place stands for.
        weight = layer.weight.detach()[:, :, 0, 0].unflatten(0, (-1, f * f)).mean(1)  # (3, C)
        bias = layer.bias.detach().unflatten(0, (-1, f * f)).mean(1)
        shift = weight.sum(1) * config.shift_factor
        return Colours(weight.T / config.scaling_factor, bias + shift)
    known = FITTED.get((config.latent_channels, config.scaling_factor))
    return None if known is None else Colours(torch.tensor(known), torch.zeros(3))


def is_quick(vae: VAE) -> bool:
    """Whether every step may as well be decoded."""
    return sum(p.numel() for p in vae.decoder.parameters()) <= QUICK_PARAMETERS


def decoder_of(model: Model, decoder: str) -> VAE | TinyVAE:
    """What decodes: the autoencoder, or the tiny one. An autoencoder that is as quick as a tiny one
    stands for it. ValueError if there is none."""
    if decoder == "vae" or (model.tiny_vae is None and is_quick(model.vae)):
        return model.vae
    if model.tiny_vae is None:
        raise ValueError(
            f"decoder is {decoder!r}, and {model.name} has none: {wanted(model.vae.config)} is "
            "wanted, beside the model or given with --tiny-vae"
        )
    return model.tiny_vae


@torch.no_grad()
def pictures(runtime: Runtime, latents: Tensor, decoder: str = "vae") -> list[Image.Image]:
    """Scaled latents (B, C, h, w) as pictures; decoder: "vae" or "tiny". Raises NotFinite."""
    pixels = runtime.decode(decoder_of(runtime.model, decoder), latents)
    return [to_pil(picture) for picture in pixels.float()]


def preview(model: Model, latents: Tensor, how: str = "auto") -> list[Image.Image]:
    """x_t or x0 of any step as pictures; x_t is what the decoder makes of noise.

    how: "vae" or "tiny" decodes; "linear" shows the colours of each place alone, without a decoder.
    "auto" is the autoencoder if that is quick, else the tiny one if there is one, else linear if
    the colours of the latents are known. ValueError: not finite, or what is asked for is not there.
    """
    choose(how, PREVIEWS, "preview")
    if not math.isfinite(float(latents.abs().max())):
        raise ValueError("the latents are not finite")
    colours = colours_of(model.vae)
    if how == "auto":
        slow = "vae" if colours is None else "linear"
        quick = is_quick(model.vae)
        how = "vae" if quick else slow if model.tiny_vae is None else "tiny"
    if how != "linear":
        return pictures(Runtime(model), latents, how)
    if colours is None:
        raise ValueError(f"the colours of the latents of {model.name} are not known; decode them")
    f = model.vae.config.downsample
    size = (latents.shape[3] * f, latents.shape[2] * f)
    smooth = Image.Resampling.BICUBIC
    return [to_pil(small).resize(size, smooth) for small in colours(latents.float())]
