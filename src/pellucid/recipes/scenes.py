"""The recipe of a small model that learns several things in one picture: with ``source=scenes``.

The network has attention at its full size too, so that words can be placed there, and a wider map.
It can begin as the network of the recipe ``emoji``: ``start=FILE grow=true``.
"""

from __future__ import annotations

from dataclasses import replace

from pellucid.backbones.unet import UNetConfig
from pellucid.recipes import emoji

MAP_WIDTH = 1024

SINGLE = {"plain": 0.34, "tint": 0.12, "ground": 0.08}
SEVERAL = {"layout": 0.06, "pair": 0.18, "colors": 0.08, "count": 0.08, "many": 0.06}
# Several things are drawn in regions, each by itself (`regions`), so the network learns single ones.
DRAWN = dict.fromkeys(SEVERAL, 0.0) | {"plain": 0.38, "tint": 0.36, "ground": 0.2, "pair": 0.06}


def unet(channels: tuple[int, ...]) -> UNetConfig:
    """The network with these widths. ValueError unless they are multiples of 32."""
    return replace(
        emoji.unet(channels),
        transformer_layers=(1,) * len(channels),
        heads=tuple(c // emoji.HEAD for c in channels),
        map_width=MAP_WIDTH,
    )


RECIPE = replace(
    emoji.RECIPE,
    unet=unet,
    mixes={
        "vae": SINGLE | SEVERAL,
        "clip": SINGLE | SEVERAL | {"play": 0.5},
        # Mostly as the things were drawn: fewer places for an outline, learned sooner.
        "diffusion": DRAWN | {"play": 0.12, "mirror": 0.1, "core": 0.12},
        "gan": dict.fromkeys(("tint", "ground", *SEVERAL), 0.0),
    },
)
