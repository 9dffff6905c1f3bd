"""Stable Diffusion 1 (Rombach et al. 2022, arXiv:2112.10752): 512 pixels, one CLIP text tower."""

from pellucid.backbones.unet import SD15
from pellucid.checkpoints.families import Family, Tower
from pellucid.clip import SD1_TEXT
from pellucid.model import Defaults, LatentSpace, TextEncoding
from pellucid.vae import SD_VAE

FAMILY = Family(
    title="Stable Diffusion 1",
    backbone=SD15,
    towers=(Tower(SD1_TEXT, "cond_stage_model.transformer.", "text_encoder"),),
    text_encoding=TextEncoding(pads=(SD1_TEXT.eos,), emphasis="original"),
    vae=SD_VAE,
    # huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5, CompVis/stable-diffusion-v1-4
    defaults={"sd1": Defaults(25, 7.5, "dpmpp_2m", "automatic", 512, 512)},
    latents=LatentSpace(
        colors=(  # by torridgristle
            (0.3444, 0.1385, 0.0670),
            (0.1247, 0.4027, 0.1494),
            (-0.3192, 0.2513, 0.2103),
            (-0.1307, -0.1874, -0.7445),
        ),
        tiny_vae="taesd",
    ),
    index={
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    },
    lora_versions=("sd_v1", "sd_1", "stable-diffusion-v1"),
)
