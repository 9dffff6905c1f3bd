"""Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206): a transformer, a flow, two CLIP towers.

It is read from diffusers' folders. T5, its third text tower, is optional and not used.
"""

from dataclasses import replace

from pellucid.backbones.mmdit import SD3_MEDIUM
from pellucid.checkpoints.families import Family, Tower
from pellucid.clip import SD1_TEXT, SDXL_TEXT
from pellucid.model import Defaults, LatentSpace, TextEncoding
from pellucid.schedule import Schedule
from pellucid.vae import VAEConfig

FAMILY = Family(
    title="Stable Diffusion 3",
    backbone=SD3_MEDIUM,
    towers=(
        Tower(replace(SD1_TEXT, projection=768), "", "text_encoder"),
        Tower(SDXL_TEXT, "", "text_encoder_2"),
    ),
    # In place of T5's tokens diffusers puts 256 zero tokens, as many as T5 would have.
    text_encoding=TextEncoding(
        layer=-2,
        final_norm=False,
        pads=(SD1_TEXT.eos, 0),
        pooled="all",
        width=SD3_MEDIUM.cross_attention_dim,
        blank=256,
    ),
    vae=VAEConfig(
        latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False
    ),
    # stabilityai/stable-diffusion-3-medium-diffusers: 28 steps, 7.0, flow matching with shift 3
    defaults={"sd3": Defaults(28, 7.0, "euler", "linspace", 1024, 1024)},
    prediction="flow",
    schedule=Schedule("flow", shift=3.0),
    latents=LatentSpace(
        colors=(
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
        tiny_vae="taesd3",
    ),
    pipeline="StableDiffusion3",
    index={"text_encoder_3": [None, None], "tokenizer_3": [None, None]},  # T5's
    lora_versions=("sd3", "stable-diffusion-3"),
    lora_keys=("joint_blocks", "attn.add_q_proj", "attn_add_q_proj"),
)
