"""The names of parameters in the original files, given the names that they have here.

A table serves both directions: reading and writing a file both start from the network's own
parameters and look up where each one is. In a rule "*" is any piece of a name, in the same order on
both sides; "~" is the number of a level, which the other side counts from the other end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from pellucid.backbones.unet import UNetConfig
from pellucid.checkpoints.assembly import Layout, Location

UNET_PREFIX = "model.diffusion_model."
EMA_PREFIX = "model_ema.diffusion_model"  # the running average that training keeps
VAE_PREFIXES = ("first_stage_model.", "vae.")  # the original one, and that of newer merges
NEST = "state_dict."  # some files have this in front of every key

# Our name, the file's, and how the parameter is stored there, if not plainly.
Rule = tuple[str, str] | tuple[str, str, Layout] | tuple[str, str, Layout, int]

UNET: tuple[Rule, ...] = (
    ("conv_in.*", "input_blocks.0.0.*"),
    ("time_embedding.linear_1.*", "time_embed.0.*"),
    ("time_embedding.linear_2.*", "time_embed.2.*"),
    ("add_embedding.linear_1.*", "label_emb.0.0.*"),
    ("add_embedding.linear_2.*", "label_emb.0.2.*"),
    ("conv_norm_out.*", "out.0.*"),
    ("conv_out.*", "out.2.*"),
)
# Inside a residual block; all else inside a block has the same names.
RESIDUAL: tuple[Rule, ...] = (
    ("norm1.*", "in_layers.0.*"),
    ("conv1.*", "in_layers.2.*"),
    ("time_emb_proj.*", "emb_layers.1.*"),
    ("norm2.*", "out_layers.0.*"),
    ("conv2.*", "out_layers.3.*"),
    ("conv_shortcut.*", "skip_connection.*"),
)
VAE: tuple[Rule, ...] = (
    ("quant_conv.*", "quant_conv.*"),
    ("post_quant_conv.*", "post_quant_conv.*"),
    ("*.conv_in.*", "*.conv_in.*"),
    ("*.conv_norm_out.*", "*.norm_out.*"),
    ("*.conv_out.*", "*.conv_out.*"),
    ("*.mid_block.resnets.0.*.*", "*.mid.block_1.*.*"),
    ("*.mid_block.resnets.1.*.*", "*.mid.block_2.*.*"),
    ("*.mid_block.attentions.0.group_norm.*", "*.mid.attn_1.norm.*"),
    ("*.mid_block.attentions.0.to_q.*", "*.mid.attn_1.q.*", "conv"),
    ("*.mid_block.attentions.0.to_k.*", "*.mid.attn_1.k.*", "conv"),
    ("*.mid_block.attentions.0.to_v.*", "*.mid.attn_1.v.*", "conv"),
    ("*.mid_block.attentions.0.to_out.0.*", "*.mid.attn_1.proj_out.*", "conv"),
    ("encoder.down_blocks.*.resnets.*.conv_shortcut.*", "encoder.down.*.block.*.nin_shortcut.*"),
    ("encoder.down_blocks.*.resnets.*.*.*", "encoder.down.*.block.*.*.*"),
    ("encoder.down_blocks.*.downsamplers.0.conv.*", "encoder.down.*.downsample.conv.*"),
    ("decoder.up_blocks.~.resnets.*.conv_shortcut.*", "decoder.up.~.block.*.nin_shortcut.*"),
    ("decoder.up_blocks.~.resnets.*.*.*", "decoder.up.~.block.*.*.*"),
    ("decoder.up_blocks.~.upsamplers.0.conv.*", "decoder.up.~.upsample.conv.*"),
)
_LAYER, _BLOCK = "text_model.encoder.layers.*", "transformer.resblocks.*"
OPEN_CLIP: tuple[Rule, ...] = (
    ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.*", "ln_final.*"),
    ("text_projection.weight", "text_projection", "transposed"),
    (f"{_LAYER}.layer_norm1.*", f"{_BLOCK}.ln_1.*"),
    (f"{_LAYER}.layer_norm2.*", f"{_BLOCK}.ln_2.*"),
    (f"{_LAYER}.self_attn.q_proj.*", f"{_BLOCK}.attn.in_proj_*", "third", 0),
    (f"{_LAYER}.self_attn.k_proj.*", f"{_BLOCK}.attn.in_proj_*", "third", 1),
    (f"{_LAYER}.self_attn.v_proj.*", f"{_BLOCK}.attn.in_proj_*", "third", 2),
    (f"{_LAYER}.self_attn.out_proj.*", f"{_BLOCK}.attn.out_proj.*"),
    (f"{_LAYER}.mlp.fc1.*", f"{_BLOCK}.mlp.c_fc.*"),
    (f"{_LAYER}.mlp.fc2.*", f"{_BLOCK}.mlp.c_proj.*"),
)


@lru_cache(maxsize=1024)
def _pattern(ours: str) -> re.Pattern[str]:
    pattern = re.escape(ours).replace(r"\*", r"([^.]+)").replace(r"\~", r"(?P<level>\d+)")
    return re.compile(pattern)


def locate(name: str, rules: Sequence[Rule], levels: int = 0) -> Location | None:
    """Where the parameter `name` is in a file, by the first rule that matches."""
    for ours, theirs, *how in rules:
        if found := _pattern(ours).fullmatch(name):
            groups = list(found.groups())
            if "~" in ours:
                theirs = theirs.replace("~", str(levels - 1 - int(found["level"])))
                groups.remove(found["level"])
            for group in groups:
                theirs = theirs.replace("*", group, 1)
            return Location(theirs, *how)
    return None


def _locations(
    names: Iterable[str], rules: Sequence[Rule], prefix: str, levels: int = 0
) -> dict[str, Location]:
    locations = {}
    for name in names:
        found = locate(name, rules, levels)
        if found is None:
            raise ValueError(f"{name} has no name in the original layout")
        locations[name] = found._replace(key=prefix + found.key)
    return locations


def unet_locations(
    names: Iterable[str], config: UNetConfig, prefix: str = ""
) -> dict[str, Location]:
    """Where the parameters of a U-Net are. ValueError for one that the layout does not have."""
    blocks = unet_blocks(config)
    locations = {}
    for name in names:
        pieces = name.split(".")
        length = 5 if "samplers" in name else 4 if name[:3] in ("dow", "up_") else 3
        block, rest = ".".join(pieces[:length]), ".".join(pieces[length:])
        if block in blocks:
            inner = locate(rest, RESIDUAL) if ".resnets." in name else None
            locations[name] = Location(
                f"{prefix}{blocks[block]}.{rest if inner is None else inner.key}"
            )
        else:
            locations |= _locations([name], UNET, prefix)
    return locations


def unet_blocks(config: UNetConfig) -> dict[str, str]:
    """Our name of every block -> its original name, which numbers all blocks of a U-Net."""
    blocks = {
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    layers, levels = config.layers_per_block, len(config.block_out_channels)
    number = 1
    for level in range(levels):
        for layer in range(layers):
            blocks[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
            blocks[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        blocks[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1
    number = 0
    for level in range(levels):
        for layer in range(layers + 1):
            blocks[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{number}.0"
            blocks[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
            number += 1
        behind = 2 if config.transformer_layers[levels - 1 - level] > 0 else 1
        blocks[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{behind}.conv"
    return blocks


def vae_locations(names: Iterable[str], levels: int, prefix: str = "") -> dict[str, Location]:
    """Where the parameters of an autoencoder with this number of levels are."""
    return _locations(names, VAE, prefix, levels)


def vae_location(name: str, levels: int) -> Location | None:
    """Where one parameter of an autoencoder is; None if the layout does not have it."""
    return locate(name, VAE, levels)


def open_clip_locations(names: Iterable[str], prefix: str = "") -> dict[str, Location]:
    """Where the parameters of a text tower are in OpenCLIP's files."""
    return _locations(names, OPEN_CLIP, prefix)


def clip_locations(
    names: Iterable[str], prefix: str = "", level: bool = True
) -> dict[str, Location]:
    """Where the parameters of a text tower are in Hugging Face's files; the oldest of the original
    files do not have the `level` "text_model."."""
    return {
        name: Location(prefix + (name if level else name.removeprefix("text_model.")))
        for name in names
    }


# diffusers' names of the autoencoder's attention before 0.17.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def modern(key: str) -> str:
    """diffusers' present name of a parameter of an autoencoder."""
    head, _, rest = key.partition(".attentions.0.")
    piece, _, end = rest.partition(".")
    return f"{head}.attentions.0.{OLD_ATTENTION[piece]}.{end}" if piece in OLD_ATTENTION else key


# ---------------------------------------------------------------- averages of the weights

# The running averages that training keeps have the U-Net's names without the dots. In every name the
# pieces are known words, and the last digit before a letter is a piece of its own.
_PIECES = re.compile(
    r"(?P<block>input_blocks|output_blocks)(?P<number>\d+)(?P<inner>\d)"
    r"|(?P<label>label_emb)(?P<outer>\d)(?P<linear>\d)"
    r"|(?P<word>middle_block|transformer_blocks|in_layers|out_layers|emb_layers|time_embed|to_out|out"
    r"|net)(?P<at>\d+)"
    r"|(?P<plain>skip_connection|norm\d?|proj_in|proj_out|attn\d|to_[qkv]|ff|proj|op|conv|weight|bias)"
)


def dotted(name: str) -> str | None:
    """ "input_blocks10in_layers0weight" -> "input_blocks.1.0.in_layers.0.weight"; None if that is
    not the name of a U-Net's parameter."""
    pieces: list[str] = []
    end = 0
    for found in _PIECES.finditer(name):
        if found.start() != end:
            return None
        pieces += [group for group in found.groups() if group is not None]
        end = found.end()
    return ".".join(pieces) if end == len(name) and pieces else None


def prefix_of(keys: Iterable[str], prefixes: Iterable[str] = VAE_PREFIXES) -> str | None:
    """The first of `prefixes` that a key begins with; None if no key begins with any."""
    names = list(keys)
    return next((p for p in prefixes if any(name.startswith(p) for name in names)), None)
