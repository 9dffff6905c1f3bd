"""The network that is evaluated at every step, drawn from its config."""

from __future__ import annotations

from html import escape
from typing import Any

from pellucid.backbones.mmdit import MMDiTConfig
from pellucid.backbones.unet import UNetConfig
from pellucid.explain.run.record import Explanation
from pellucid.explain.run.sections._section import Content, Section
from pellucid.html.numbers import people
from pellucid.model import Model

SECTION = Section(60, "loop", "The network", "Network", "predicts the noise")

UNET = (
    "Each level halves the size and has more channels, so that it sees more of the picture at once. "
    "On the way up, every residual block also gets what a block of its size saw on the way down: "
    "the skip connections, which keep the details. The time enters every residual block; the text "
    "enters where a level has cross-attention."
)
MMDIT = (
    "The latents are cut into patches. Patches of the picture and tokens of the text go through the "
    "same layers, each with weights of their own, and attend to all of both. The time and the pooled "
    "text scale and shift what every layer sees and gives."
)
OTHER = "There is no drawing of this kind of network yet."


def content(model: Model, run: Explanation) -> Content:
    drawing = drawing_of(model.backbone.config, run)
    words = {"unet": UNET, "mmdit": MMDIT}.get(drawing["kind"], OTHER)
    count = sum(parameter.numel() for parameter in model.backbone.parameters())
    return Content(
        f"<p>The network of {escape(run.model)} is of the kind "
        f"<code>{escape(type(model.backbone).__name__)}</code> and has {people(count)} parameters. "
        f"{words}</p>",
        "output = network(x<sub>t</sub>, t, text)",
        [type(model.backbone).forward],
        drawing,
    )


def drawing_of(config: Any, run: Explanation) -> dict[str, Any]:
    """What is drawn, with the sizes of this run, as JSON values. kind: "unet", "mmdit" or "other"."""
    height, width = run.start.shape[1:]
    tokens, text_width = run.text.tokens.shape[1:]
    text = {"tokens": tokens, "textWidth": text_width, "size": [width, height]}
    if isinstance(config, UNetConfig):
        return unet(config, width, height) | text
    if isinstance(config, MMDiTConfig):
        return mmdit(config, width, height) | text
    return {"kind": "other"}


def unet(config: UNetConfig, width: int, height: int) -> dict[str, Any]:
    """A U-Net for latents of width x height: its levels from the largest, and what enters where."""
    levels = []
    last = len(config.block_out_channels) - 1
    for i, channels in enumerate(config.block_out_channels):
        levels.append(
            {
                "size": [width, height],
                "channels": channels,
                "down": config.layers_per_block,
                "up": config.layers_per_block + 1,
                "attention": config.transformer_layers[i],  # transformer blocks behind each block
                # Kept for the way up: the first convolution or the downsampled output of the
                # level above, and one output of each block.
                "skips": config.layers_per_block + 1,
            }
        )
        if i < last:
            width, height = (width + 1) // 2, (height + 1) // 2  # stride 2, padding 1
    return {
        "kind": "unet",
        "in": config.in_channels,
        "out": config.out_channels,
        "map": config.map_channels,
        "pooled": config.pooled_dim,
        "sizes": config.size_count if config.size_conditions else 0,
        "time": 4 * config.block_out_channels[0],
        "mid": config.mid_transformer_layers,
        "levels": levels,
    }


def mmdit(config: MMDiTConfig, width: int, height: int) -> dict[str, Any]:
    """A transformer for latents of width x height."""
    side = config.patch_size
    return {
        "kind": "mmdit",
        "in": config.in_channels,
        "out": config.out_channels,
        "patch": side,
        "patches": [-(-width // side), -(-height // side)],
        "layers": config.layers,
        "heads": config.heads,
        "width": config.width,
        "pooled": config.pooled_dim,
        "dual": len(config.dual_attention_layers),
    }
