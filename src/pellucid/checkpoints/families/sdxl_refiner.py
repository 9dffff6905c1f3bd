"""The refiner of Stable Diffusion XL: the second of its text towers alone, and an aesthetic score in
place of the target size."""

from dataclasses import replace

from pellucid.backbones.unet import SDXL
from pellucid.checkpoints.families import Family, Tower, sdxl
from pellucid.clip import SDXL_TEXT
from pellucid.model import Defaults, TextEncoding
from pellucid.vae import SDXL_VAE

UNET = replace(
    SDXL,
    block_out_channels=(384, 768, 1536, 1536),
    transformer_layers=(0, 4, 4, 0),
    mid_transformer_layers=4,
    heads=(6, 12, 24, 24),
    cross_attention_dim=1280,
    size_count=5,  # original size, crop, and the score
)

FAMILY = Family(
    title="Stable Diffusion XL refiner",
    backbone=UNET,
    towers=(Tower(SDXL_TEXT, "conditioner.embedders.0.model.", "text_encoder_2"),),
    text_encoding=TextEncoding(layer=-2, final_norm=False, pads=(0,)),
    vae=SDXL_VAE,
    # stabilityai/stable-diffusion-xl-refiner-1.0
    defaults={"sdxl_refiner": Defaults(30, 5.0, "dpmpp_2m", "automatic", 1024, 1024)},
    latents=sdxl.FAMILY.latents,
    pipeline="StableDiffusionXL",
    use="Img2Img",
    index={"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True},
)
