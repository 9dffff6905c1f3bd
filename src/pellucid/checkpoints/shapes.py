"""From the shapes of a file's weights to the configs of its networks.

Widths, levels, depths and channels show in the shapes, so a model of any size loads; what does not
show is as in the family's published networks. The keys are the original ones (latent diffusion,
OpenCLIP, and Hugging Face's for CLIP), without their prefix. ValueError, KeyError and StopIteration
mean that the weights are not such a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pellucid.backbones.unet import SIZE_WIDTH, UNetConfig
from pellucid.clip import SD1_TEXT, TextConfig
from pellucid.vae import VAEConfig

Shapes = Mapping[str, tuple[int, ...]]

HEAD_WIDTH = 64  # of all attention in CLIP's towers
BLOCKS = 100  # more blocks than any model has


def under(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """The shapes whose key begins with `prefix`, without it."""
    return {k.removeprefix(prefix): shape for k, shape in shapes.items() if k.startswith(prefix)}


def text_config(shapes: Shapes, published: TextConfig) -> TextConfig:
    """The text tower with these weights, under the names of OpenCLIP or of Hugging Face. What shapes
    do not show is as in the family's `published` tower."""
    if any(key.startswith("transformer.resblocks.") for key in shapes):
        return open_clip_config(shapes)
    return clip_config(shapes, published)


def _sides(shapes: Shapes, key: str, count: int) -> tuple[int, ...]:
    """The shape of `key`, which must have `count` sides."""
    shape = shapes[key]
    if len(shape) != count:
        raise ValueError(f"{key} has the shape {shape}; it must have {count} sides")
    return shape


def unet_config(shapes: Shapes, published: UNetConfig) -> UNetConfig:
    """The U-Net with these weights. What shapes do not show, the numbers of heads and of size
    conditions, is as in the family's `published` U-Net."""
    at_level, depths, per_level = _levels(shapes)
    seen = next((key for key in shapes if key.endswith("attn2.to_k.weight")), None)
    if seen is None:
        raise ValueError("its U-Net has no attention to a text")
    projection = next(s for k, s in shapes.items() if k.endswith("1.proj_in.weight"))
    pooled, sizes = 0, 6
    if "label_emb.0.0.weight" in shapes:
        sizes = published.size_count
        pooled = _sides(shapes, "label_emb.0.0.weight", 2)[1] - sizes * SIZE_WIDTH
        if pooled <= 0:
            raise ValueError("label_emb.0.0.weight is too narrow for the size conditions")
    return UNetConfig(
        in_channels=_sides(shapes, "input_blocks.0.0.weight", 4)[1],
        out_channels=_sides(shapes, "out.2.weight", 4)[0],
        block_out_channels=at_level,
        layers_per_block=per_level,
        transformer_layers=depths,
        mid_transformer_layers=_depth(shapes, "middle_block.1"),
        heads=tuple(heads_of(width, published) for width in at_level),
        cross_attention_dim=_sides(shapes, seen, 2)[1],
        use_linear_projection=len(projection) == 2,
        pooled_dim=pooled,
        size_conditions=pooled > 0,
        size_count=sizes,
    )


def _levels(shapes: Shapes) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The width and the transformers' depth at every level, and the number of layers of a level."""
    layers: list[list[int]] = [[]]  # the depth of every layer's transformer, level by level
    widths: list[int] = []
    for number in range(1, BLOCKS):
        block = f"input_blocks.{number}.0"
        if f"{block}.op.weight" in shapes:
            layers.append([])
        elif f"{block}.out_layers.3.weight" in shapes:
            widths.append(_sides(shapes, f"{block}.out_layers.3.weight", 4)[0])
            layers[-1].append(_depth(shapes, f"input_blocks.{number}.1"))
        else:
            break
    per_level = len(layers[0])
    if per_level == 0 or any(len(level) != per_level for level in layers):
        raise ValueError("its levels have different numbers of layers")
    if any(len(set(level)) > 1 for level in layers):
        raise ValueError("the layers of one level differ in depth, as in distilled models (SSD-1B)")
    last = f"output_blocks.{len(layers) * (per_level + 1) - 1}"
    if f"{last}.0.out_layers.3.weight" not in shapes:
        raise ValueError(f"it has no {last}; the way up has fewer blocks than the way down")
    return tuple(widths[::per_level]), tuple(level[0] for level in layers), per_level


def heads_of(width: int, published: UNetConfig) -> int:
    """How many heads attention of this width has: the published number where that is the same at
    all levels (SD1), else heads of the published width."""
    if len(set(published.heads)) == 1:
        return published.heads[0]
    return max(width * published.heads[0] // published.block_out_channels[0], 1)


def _depth(shapes: Shapes, block: str) -> int:
    for depth in range(BLOCKS):
        if f"{block}.transformer_blocks.{depth}.norm1.weight" not in shapes:
            return depth
    raise ValueError(f"{block} has {BLOCKS} transformer blocks or more")


def vae_config(shapes: Shapes, like: VAEConfig) -> VAEConfig:
    """The autoencoder with these weights; the scale of its latents is that of `like`."""
    widths, layers = [], 0
    for level in range(BLOCKS):
        key = f"encoder.down.{level}.block.{{}}.conv2.weight"
        if key.format(0) not in shapes:
            break
        widths.append(_sides(shapes, key.format(0), 4)[0])
        layers = next(i for i in range(BLOCKS) if key.format(i) not in shapes)
    latents = _sides(shapes, "decoder.conv_in.weight", 4)[1]
    channels = _sides(shapes, "encoder.conv_in.weight", 4)[1]
    return replace(
        like,
        in_channels=channels,
        latent_channels=latents,
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        use_quant_conv="quant_conv.weight" in shapes,
        mid_attention="encoder.mid.attn_1.norm.weight" in shapes,
    )


def open_clip_config(shapes: Shapes) -> TextConfig:
    """The text tower with these weights of OpenCLIP's."""
    pieces, width = _sides(shapes, "token_embedding.weight", 2)
    layers = _count(shapes, "transformer.resblocks.")
    return TextConfig(
        vocab_size=pieces,
        context_length=_sides(shapes, "positional_embedding", 2)[0],
        width=width,
        layers=layers,
        heads=max(width // HEAD_WIDTH, 1),
        mlp_width=_sides(shapes, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        activation="gelu",
        projection=_sides(shapes, "text_projection", 2)[1] if "text_projection" in shapes else None,
        eos=SD1_TEXT.eos,
    )


def clip_config(shapes: Shapes, published: TextConfig) -> TextConfig:
    """The text tower with these weights under Hugging Face's names. Files that were written before
    2022 or with transformers 5 do not have the level "text_model."."""
    projected = published.projection is not None and "text_projection.weight" in shapes
    if not any(key.startswith("text_model.") for key in shapes):
        shapes = {f"text_model.{key}": shape for key, shape in shapes.items()}
    pieces, width = _sides(shapes, "text_model.embeddings.token_embedding.weight", 2)
    return TextConfig(
        vocab_size=pieces,
        context_length=_sides(shapes, "text_model.embeddings.position_embedding.weight", 2)[0],
        width=width,
        layers=_count(shapes, "text_model.encoder.layers."),
        heads=max(width // HEAD_WIDTH, 1),
        mlp_width=_sides(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        activation=published.activation,
        projection=_sides(shapes, "text_projection.weight", 2)[0] if projected else None,
        eos=SD1_TEXT.eos,
    )


def _count(shapes: Shapes, prefix: str) -> int:
    """How many different numbers follow `prefix`."""
    numbers = {key.removeprefix(prefix).split(".")[0] for key in shapes if key.startswith(prefix)}
    if len(numbers) >= BLOCKS:
        raise ValueError(f"it has {len(numbers)} {prefix}*")
    return len(numbers)
