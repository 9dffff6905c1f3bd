"""The MMDiT in diffusers' layout: SD3Transformer2DModel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pellucid.backbones.mmdit import MMDiT, MMDiTConfig
from pellucid.checkpoints.backbones import Backbone
from pellucid.checkpoints.json_config import AVERAGING, JsonConfig
from pellucid.clip import TextConfig
from pellucid.safetensors_header import CheckpointError

CLASS = "SD3Transformer2DModel"
QK_NORM = {"": False, "rms_norm": True}


def read(settings: JsonConfig, texts: Sequence[TextConfig]) -> MMDiTConfig:
    """config.json of the transformer; `texts` are the text towers of the model, which it must fit."""
    channels = settings.whole("in_channels", 16)
    layers = settings.whole("num_layers", 18)
    try:
        config = MMDiTConfig(
            in_channels=channels,
            out_channels=settings.whole("out_channels", channels),
            patch_size=settings.whole("patch_size", 2),
            layers=layers,
            heads=settings.whole("num_attention_heads", 18),
            head_width=settings.whole("attention_head_dim", 64),
            cross_attention_dim=settings.whole("joint_attention_dim", 4096),
            pooled_dim=settings.whole("pooled_projection_dim", 2048),
            sample_size=settings.whole("sample_size", 128),
            max_patches=settings.whole("pos_embed_max_size", 96),
            qk_norm=settings.word("qk_norm", "", QK_NORM),
            dual_attention_layers=_dual(settings, layers),
        )
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{settings.path}: {error}") from error
    if settings.whole("caption_projection_dim", config.width) != config.width:
        raise settings.refused("caption_projection_dim", f"{config.width}, the width of the layers")
    pooled = [text.projection or 0 for text in texts]
    if config.pooled_dim != sum(pooled):
        raise settings.refused(
            "pooled_projection_dim",
            f"{sum(pooled)}, the sum of the text encoders' projections {pooled}",
        )
    widths = [text.width for text in texts]
    if config.cross_attention_dim < sum(widths):
        raise settings.refused(
            "joint_attention_dim",
            f"at least {sum(widths)}, the sum of the text encoders' widths {widths}",
        )
    settings.finish(AVERAGING)
    return config


def _dual(settings: JsonConfig, layers: int) -> tuple[int, ...]:
    numbers = settings.get("dual_attention_layers") or []
    whole = isinstance(numbers, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < layers for n in numbers
    )
    if not whole:
        raise settings.refused("dual_attention_layers", f"a list of numbers from 0 to {layers - 1}")
    return tuple(numbers)


def write(config: MMDiTConfig, latents: int) -> dict[str, Any]:
    """config.json. `latents` is not used: positions are relative to a size of the transformer's own."""
    return {
        "_class_name": CLASS,
        "sample_size": config.sample_size,
        "patch_size": config.patch_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "num_layers": config.layers,
        "attention_head_dim": config.head_width,
        "num_attention_heads": config.heads,
        "joint_attention_dim": config.cross_attention_dim,
        "caption_projection_dim": config.width,
        "pooled_projection_dim": config.pooled_dim,
        "pos_embed_max_size": config.max_patches,
        "dual_attention_layers": list(config.dual_attention_layers),
        "qk_norm": next(k for k, v in QK_NORM.items() if v == config.qk_norm) or None,
    }


BACKBONE = Backbone(CLASS, "transformer", "MMDiT", MMDiT, MMDiTConfig, read, write)
