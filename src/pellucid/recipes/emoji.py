"""The recipe of a small model of emoji of 64x64 pixels, for two CPU cores, with `source=emoji`.

The included model was trained by the recipe `scenes`, which has most of this one.
"""

from __future__ import annotations

from pellucid.backbones.unet import UNetConfig
from pellucid.cascade import SuperResolutionConfig
from pellucid.clip import TextConfig, VisionConfig
from pellucid.model import Defaults
from pellucid.train.recipe import Recipe
from pellucid.vae import VAEConfig

HEAD = 32  # channels of an attention head


def unet(channels: tuple[int, ...]) -> UNetConfig:
    """The network with these widths. ValueError unless they are multiples of 32."""
    if any(c == 0 or c % HEAD for c in channels):
        given = ",".join(map(str, channels))
        raise ValueError(f"channels must be multiples of {HEAD}, such as 96,192, got {given}")
    return UNetConfig(
        block_out_channels=channels,
        layers_per_block=1,
        # No attention at full size, where it would cost most.
        transformer_layers=(0,) + (1,) * (len(channels) - 1),
        mid_transformer_layers=1,
        heads=(1, *(c // HEAD for c in channels[1:])),
        use_linear_projection=True,
        norm_groups=16,
        pooled_dim=1,  # the loop fills in the sizes of latents and text
        map_channels=32,
        film=True,
    )


RECIPE = Recipe(
    # Latents of 32 channels and 1/8 of the size. Trains in minutes on two cores.
    vae=VAEConfig(
        latent_channels=32,
        block_out_channels=(64, 128),
        layers_per_block=1,
        norm_groups=8,
        patch_size=4,
        mid_attention=False,
        shortcut=True,
        deblock=0.25,
    ),
    text=TextConfig(
        context_length=24,
        width=192,
        layers=3,
        heads=6,
        mlp_width=768,
        activation="quick_gelu",
        projection=192,
    ),
    vision=VisionConfig(
        patch_size=8,
        width=128,
        layers=3,
        heads=4,
        mlp_width=512,
        activation="quick_gelu",
        projection=192,
    ),
    unet=unet,
    mixes={
        "vae": {"tinted": 0.2, "on_color": 0.2, "pair": 0.2},
        "clip": {"tinted": 0.14, "on_color": 0.12, "pair": 0.1},
        "diffusion": {"tinted": 0.3, "on_color": 0.2, "pair": 0.2, "play": 0.2, "styled": 0.7},
        # Of one thing each, so that a picture has one class.
        "gan": {"tinted": 0.0, "on_color": 0.0, "pair": 0.0},
    },
    # Between two prompts, embeddings lead through other things.
    defaults=Defaults(8, 3.0, "dpmpp_2m", "uniform", walk_by="estimates"),
    # Estimates are softer than pictures.
    upscaler=SuperResolutionConfig(sharpen=0.5),
)
