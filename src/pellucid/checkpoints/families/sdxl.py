"""Stable Diffusion XL (Podell et al. 2023, arXiv:2307.01952): 1024 pixels, two text towers."""

from pellucid.backbones.unet import SDXL
from pellucid.checkpoints.families import Family, Tower
from pellucid.clip import SD1_TEXT, SDXL_TEXT
from pellucid.model import Defaults, LatentSpace, TextEncoding
from pellucid.vae import SDXL_VAE

FAMILY = Family(
    title="Stable Diffusion XL",
    backbone=SDXL,
    towers=(
        Tower(SD1_TEXT, "conditioner.embedders.0.transformer.", "text_encoder"),
        Tower(SDXL_TEXT, "conditioner.embedders.1.model.", "text_encoder_2"),
    ),
    text_encoding=TextEncoding(layer=-2, final_norm=False, pads=(SD1_TEXT.eos, 0), zero_empty=True),
    vae=SDXL_VAE,
    # stabilityai/stable-diffusion-xl-base-1.0; guidance as in StableDiffusionXLPipeline
    defaults={"sdxl": Defaults(30, 5.0, "dpmpp_2m", "automatic", 1024, 1024)},
    latents=LatentSpace(
        colors=(  # by StAlKeR7779
            (0.3816, 0.4930, 0.5320),
            (-0.3753, 0.1631, 0.1739),
            (0.1770, 0.3588, -0.2048),
            (-0.4350, -0.2644, -0.4289),
        ),
        tiny_vae="taesdxl",
    ),
    pipeline="StableDiffusionXL",
    index={"force_zeros_for_empty_prompt": True},
    lora_versions=("sdxl", "stable-diffusion-xl"),
    lora_keys=("lora_te2_", "text_encoder_2."),  # SD3 has a second text tower too, and other keys
)
