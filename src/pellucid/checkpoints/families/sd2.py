"""Stable Diffusion 2: OpenCLIP's ViT-H as text tower; 512 pixels (eps) or 768 pixels (v)."""

from collections.abc import Sequence
from dataclasses import replace

from pellucid.backbones.unet import SD21
from pellucid.checkpoints.families import Family, Tower, sd1
from pellucid.clip import SD2_TEXT, TextConfig
from pellucid.model import Defaults, TextEncoding
from pellucid.vae import SD_VAE


def missing_layers(text: TextConfig) -> int:
    """How many of the last layers a tower lacks.

    SD2 was trained with the last but one of 24 layers. diffusers omits the last one, and with it the
    projection, which only that layer uses; so do files that were made from its folders.
    """
    return int(text.layers == 23 or (text.projection is None and text.layers != 24))


def adapt_encoding(
    encoding: TextEncoding, texts: Sequence[TextConfig], diffusers: bool
) -> TextEncoding:
    """The original code uses the last but one layer that was trained, diffusers the last one that is
    there."""
    missing = missing_layers(texts[0])
    layer = -1 if diffusers else encoding.layer + missing
    return replace(encoding, layer=layer, left_out=missing)


FAMILY = Family(
    title="Stable Diffusion 2",
    backbone=SD21,
    towers=(Tower(SD2_TEXT, "cond_stage_model.model.", "text_encoder"),),
    text_encoding=TextEncoding(layer=-2, pads=(0,), emphasis="original"),
    vae=SD_VAE,
    defaults={
        # stabilityai/stable-diffusion-2-1-base
        "sd2": Defaults(25, 7.5, "dpmpp_2m", "automatic", 512, 512),
        # stabilityai/stable-diffusion-2-1, whose card takes DPMSolverMultistep
        "sd2_768": Defaults(25, 7.5, "dpmpp_2m", "automatic", 768, 768),
    },
    prediction="",
    defaults_of={"v": "sd2_768"},
    latents=sd1.FAMILY.latents,
    adapt_encoding=adapt_encoding,
    index=sd1.FAMILY.index,
    lora_versions=("sd_v2", "sd_2", "stable-diffusion-v2"),
)
