"""The U-Net in diffusers' layout: UNet2DConditionModel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pellucid.backbones.unet import SIZE_WIDTH, UNet, UNetConfig
from pellucid.checkpoints.backbones import Backbone
from pellucid.checkpoints.json_config import AVERAGING, JsonConfig
from pellucid.clip import TextConfig

CLASS = "UNet2DConditionModel"
DOWN = {
    "CrossAttnDownBlock2D": True,
    "DownBlock2D": False,
}  # -> whether the block has attention to the text
UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
FIXED = {
    "act_fn": "silu",
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
IDLE = ("addition_embed_type_num_heads", "dropout", "sample_size", "upcast_attention")


def read(settings: JsonConfig, texts: Sequence[TextConfig]) -> UNetConfig:
    """config.json; `texts` are the text towers of the model."""
    at_level = settings.wholes("block_out_channels", (320, 640, 1280, 1280))
    levels = len(at_level)
    crossed = settings.words(
        "down_block_types", [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"], DOWN
    )
    back = settings.words("up_block_types", ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3], UP)
    if len(crossed) != levels or back != crossed[::-1]:
        raise settings.refused(
            "up_block_types", "down_block_types in reverse order, one for each level"
        )
    layers = settings.wholes("layers_per_block", 2, levels)
    if len(set(layers)) > 1:
        raise settings.refused("layers_per_block", "the same number at every level")
    depths = settings.wholes("transformer_layers_per_block", 1, levels)
    settings.fixed(FIXED)
    pooled, count = _added(settings, texts)
    config = UNetConfig(
        in_channels=settings.whole("in_channels", 4),
        out_channels=settings.whole("out_channels", 4),
        block_out_channels=at_level,
        layers_per_block=layers[0],
        transformer_layers=tuple(d if c else 0 for d, c in zip(depths, crossed, strict=True)),
        mid_transformer_layers=depths[-1],
        # A historical misnomer of diffusers: these are numbers of heads.
        heads=settings.wholes("attention_head_dim", 8, levels),
        cross_attention_dim=settings.whole("cross_attention_dim", 1280),
        use_linear_projection=settings.flag("use_linear_projection", False),
        norm_groups=settings.whole("norm_num_groups", 32),
        norm_eps=settings.number("norm_eps", 1e-5),
        pooled_dim=pooled,
        size_conditions=pooled > 0,
        size_count=count,
    )
    settings.finish((*IDLE, *AVERAGING))
    return config


def _added(settings: JsonConfig, texts: Sequence[TextConfig]) -> tuple[int, int]:
    """The width of the pooled text that is added to the time, and the number of size conditions."""
    if settings.word("addition_embed_type", "", {"": False, "text_time": True}):
        width = settings.whole("projection_class_embeddings_input_dim", 2816)
        settings.fixed({"addition_time_embed_dim": SIZE_WIDTH})
        pooled = (texts[-1].projection or 0) if texts else 0
        count, over = divmod(width - pooled, SIZE_WIDTH)
        if pooled > 0 and over == 0 and count in (5, 6):
            return pooled, count
        raise settings.refused(
            "projection_class_embeddings_input_dim",
            f"5 or 6 times {SIZE_WIDTH} and the {pooled} of the text encoder",
        )
    settings.fixed({"projection_class_embeddings_input_dim": None, "addition_time_embed_dim": None})
    return 0, 6


def write(config: UNetConfig, latents: int) -> dict[str, Any]:
    """config.json; `latents`: a side of the latents that it draws by default."""
    crossed = [depth > 0 for depth in config.transformer_layers]
    sized = config.size_conditions
    return {
        "_class_name": CLASS,
        "sample_size": latents,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "down_block_types": [next(k for k, v in DOWN.items() if v == c) for c in crossed],
        "up_block_types": [next(k for k, v in UP.items() if v == c) for c in crossed[::-1]],
        "transformer_layers_per_block": [
            depth if depth > 0 else config.mid_transformer_layers
            for depth in config.transformer_layers
        ],
        "attention_head_dim": list(config.heads),
        "cross_attention_dim": config.cross_attention_dim,
        "use_linear_projection": config.use_linear_projection,
        "norm_num_groups": config.norm_groups,
        "norm_eps": config.norm_eps,
        "addition_embed_type": "text_time" if sized else None,
        "addition_time_embed_dim": SIZE_WIDTH if sized else None,
        "projection_class_embeddings_input_dim": (
            config.pooled_dim + config.size_count * SIZE_WIDTH if sized else None
        ),
    } | {key: value for key, value in FIXED.items() if value is not None}


BACKBONE = Backbone(CLASS, "unet", "U-Net", UNet, UNetConfig, read, write)
