"""The families of Stable Diffusion: what a file of weights does not say about itself.

Everything that shows in the shapes of the weights (widths, levels, depths, channels) is derived
from them, so a model of another width loads as well. The rest is the family's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from pellucid.backbones.unet import SD15, SD21, SDXL, SIZE_WIDTH, UNetConfig
from pellucid.checkpoints.header import CheckpointError
from pellucid.clip import SD1_TEXT, SD2_TEXT, SDXL_TEXT, TextConfig
from pellucid.model import Defaults, TextEncoding
from pellucid.presets import preset
from pellucid.schedule import Schedule
from pellucid.tokenizer import Tokenizer
from pellucid.vae import SD_VAE, SDXL_VAE, VAEConfig

Shapes = Mapping[str, tuple[int, ...]]

HEAD_WIDTH = 64  # of all attention but that of SD1's U-Net, which has 8 heads at every level
SD1_HEADS = 8
EOS = 49407  # CLIP's
BLOCKS = 100  # so many of anything are no model

REFINER_UNET = replace(
    SDXL,
    block_out_channels=(384, 768, 1536, 1536),
    transformer_layers=(0, 4, 4, 0),
    mid_transformer_layers=4,
    heads=(6, 12, 24, 24),
    cross_attention_dim=1280,
    size_count=5,
)


@dataclass(frozen=True)
class Family:
    """What is the same in all models of a family.

    unet, text, text_2: the published shapes. prediction: "" where the file cannot say it.
    presets: prediction -> the preset of its defaults.
    """

    name: str
    title: str
    text_encoding: TextEncoding
    prediction: str
    presets: Mapping[str, str]
    vae: VAEConfig = SD_VAE
    unet: UNetConfig | None = None
    text: TextConfig = SD1_TEXT
    text_2: TextConfig | None = None
    schedule: Schedule = field(default_factory=Schedule)

    def defaults(self, prediction: str) -> Defaults:
        return preset(self.presets.get(prediction, self.presets["eps"])).over(Defaults())


SD1 = Family(
    "sd1",
    "Stable Diffusion 1",
    TextEncoding(pads=(EOS,), emphasis="original"),
    "eps",
    {"eps": "sd1"},
    unet=SD15,
)
SD2 = Family(
    "sd2",
    "Stable Diffusion 2",
    TextEncoding(layer=-2, pads=(0,), emphasis="original"),
    "",
    {"eps": "sd2", "v": "sd2_768"},
    unet=SD21,
    text=SD2_TEXT,
)
SDXL_BASE = Family(
    "sdxl",
    "Stable Diffusion XL",
    TextEncoding(layer=-2, final_norm=False, pads=(EOS, 0), zero_empty=True),
    "eps",
    {"eps": "sdxl"},
    SDXL_VAE,
    unet=SDXL,
    text_2=SDXL_TEXT,
)
REFINER = Family(
    "sdxl_refiner",
    "Stable Diffusion XL refiner",
    TextEncoding(layer=-2, final_norm=False, pads=(0,)),
    "eps",
    {"eps": "sdxl_refiner"},
    SDXL_VAE,
    unet=REFINER_UNET,
    text=SDXL_TEXT,
)
SD3 = Family(
    "sd3",
    "Stable Diffusion 3",
    # In T5's place diffusers puts the 256 zero tokens that T5 would be given room for.
    TextEncoding(layer=-2, final_norm=False, pads=(EOS, 0), pooled="all", width=4096, blank=256),
    "flow",
    {"eps": "sd3", "flow": "sd3"},
    VAEConfig(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False),
    text=replace(SD1_TEXT, projection=768),
    text_2=SDXL_TEXT,
    schedule=Schedule("flow", shift=3.0),
)
FAMILIES = {family.name: family for family in (SD1, SD2, SDXL_BASE, REFINER, SD3)}
# What a U-Net with more channels in sees beside the noisy latents.
INPUTS = {4: "", 9: "inpainting", 8: "pix2pix"}


def variant(family: Family, in_channels: int) -> str:
    """The family's title, and what its U-Net is for where it takes more than latents."""
    if in_channels not in INPUTS:
        known = ", ".join(f"{channels} {use}".strip() for channels, use in INPUTS.items())
        raise CheckpointError(
            f"its U-Net takes {in_channels} channels; known are {known} (depth and upscaling models "
            "are not read)"
        )
    return f"{family.title} {INPUTS[in_channels]}".strip()


# ---------------------------------------------------------------- shapes -> configs


def _sides(shapes: Shapes, key: str, count: int) -> tuple[int, ...]:
    """The shape of `key`, which must have so many sides."""
    shape = shapes[key]
    if len(shape) != count:
        raise ValueError(f"{key} has the shape {shape}, and not {count} sides")
    return shape


# The keys of these are the original ones (latent diffusion, OpenCLIP) or, for towers that say
# "text_model", Hugging Face's, all without their prefix. ValueError and KeyError say that it is no
# such network.


def unet_config(shapes: Shapes, family: Family) -> UNetConfig:
    """The U-Net that has these weights; `family` says how many heads there are."""
    first = _sides(shapes, "input_blocks.0.0.weight", 4)
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
    at_level = tuple(widths[::per_level])
    depths = tuple(level[0] for level in layers)
    last = f"output_blocks.{len(layers) * (per_level + 1) - 1}"
    if f"{last}.0.out_layers.3.weight" not in shapes:
        raise ValueError(f"it has no {last}, where as many are needed as on the way down")
    seen = next((key for key in shapes if key.endswith("attn2.to_k.weight")), None)
    if seen is None:
        raise ValueError("its U-Net sees no text")
    projection = next(s for k, s in shapes.items() if k.endswith("1.proj_in.weight"))
    pooled, sizes = 0, 6
    if "label_emb.0.0.weight" in shapes:
        # The refiner's numbers are five: original size, crop, and one score of beauty.
        sizes = 5 if family is REFINER else 6
        pooled = _sides(shapes, "label_emb.0.0.weight", 2)[1] - sizes * SIZE_WIDTH
        if pooled <= 0:
            raise ValueError("label_emb.0.0.weight is too narrow for the size conditions")
    return UNetConfig(
        in_channels=first[1],
        out_channels=_sides(shapes, "out.2.weight", 4)[0],
        block_out_channels=at_level,
        layers_per_block=per_level,
        transformer_layers=depths,
        mid_transformer_layers=_depth(shapes, "middle_block.1"),
        heads=tuple(heads_of(width, family) for width in at_level),
        cross_attention_dim=_sides(shapes, seen, 2)[1],
        use_linear_projection=len(projection) == 2,
        pooled_dim=pooled,
        size_conditions=pooled > 0,
        size_count=sizes,
    )


def heads_of(width: int, family: Family) -> int:
    """How many heads attention of this width has in the family's U-Net."""
    return SD1_HEADS if family is SD1 else max(width // HEAD_WIDTH, 1)


def _depth(shapes: Shapes, block: str) -> int:
    for depth in range(BLOCKS):
        if f"{block}.transformer_blocks.{depth}.norm1.weight" not in shapes:
            return depth
    raise ValueError(f"{block} has {BLOCKS} transformer blocks or more")


def vae_config(shapes: Shapes, like: VAEConfig) -> VAEConfig:
    """The autoencoder that has these weights; the scale of its latents is `like`'s."""
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
    """The text tower that OpenCLIP's weights make."""
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
        eos=EOS,
    )


def clip_config(shapes: Shapes) -> TextConfig:
    """The text tower that OpenAI's weights make, with Hugging Face's names."""
    pieces, width = _sides(shapes, "text_model.embeddings.token_embedding.weight", 2)
    return TextConfig(
        vocab_size=pieces,
        context_length=_sides(shapes, "text_model.embeddings.position_embedding.weight", 2)[0],
        width=width,
        layers=_count(shapes, "text_model.encoder.layers."),
        heads=max(width // HEAD_WIDTH, 1),
        mlp_width=_sides(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        activation="quick_gelu",
        projection=None,
        eos=EOS,
    )


def _count(shapes: Shapes, prefix: str) -> int:
    """How many different numbers follow `prefix`."""
    numbers = {key.removeprefix(prefix).split(".")[0] for key in shapes if key.startswith(prefix)}
    if len(numbers) >= BLOCKS:
        raise ValueError(f"it has {len(numbers)} {prefix}*")
    return len(numbers)


def sd2_left_out(text: TextConfig) -> int:
    """How many of the last layers an SD2 tower lacks.

    SD2 was trained with the last but one of 24. diffusers leaves the last one out, and with it the
    projection that it would be used for, and files that were made from its folders lack both.
    """
    return int(text.layers == 23 or (text.projection is None and text.layers != 24))


def sd2_reading(text: TextConfig) -> TextEncoding:
    """How the original code reads an SD2 tower: by the last but one layer, by its own count."""
    left_out = sd2_left_out(text)
    return replace(SD2.text_encoding, layer=SD2.text_encoding.layer + left_out, left_out=left_out)


def clip_tokenizer() -> Tokenizer:
    """The tokenizer of all Stable Diffusion models."""
    return Tokenizer.clip()


# ---------------------------------------------------------------- what a file is

_KINDS: tuple[tuple[str, str], ...] = (
    (
        r"(lora_(unet|te\d?|transformer)_|.*\.(lora_[AB]|lora_down|lora_up|hada_w1_a|lokr_w1)\.)",
        "a LoRA",
    ),
    (r".*(_lora|\.lora|\.lora_linear_layer)\.(down|up)\.weight$", "a LoRA"),
    (r"(unet|text_encoder):\d+:(up|down)$", "a LoRA"),
    (r"(emb_params|clip_l|clip_g|string_to_param|<.*>)$", "a textual-inversion embedding"),
    (r"(control_model\.|controlnet_cond_embedding\.|input_hint_block\.)", "a ControlNet"),
    (r"(model\.diffusion_model\.)?joint_blocks\.", "Stable Diffusion 3 as a single file"),
    (r"(model\.diffusion_model\.)?double_blocks\.", "a Flux model"),
    (r".*motion_modules\.", "a motion module (AnimateDiff)"),
    (r"model\.diffusion_model\.input_blocks\.", "a model"),
    (r"backbone\.", "a file of Pellucid's own layout"),
    (r"(first_stage_model\.|vae\.|)(encoder\.down|decoder\.up)", "a VAE alone"),
    (r"(encoder\.layers|decoder\.layers)\.\d+\.", "a tiny autoencoder (TAESD) alone"),
    (r"\d+\.(conv\.\d+\.)?(weight|bias)$", "a tiny autoencoder (TAESD) alone"),
    (r"(down_blocks|up_blocks|mid_block|input_blocks)\.", "a U-Net alone"),
    (r"(text_model\.|transformer\.resblocks\.)", "a text encoder alone"),
)


def what_is(keys: Iterable[str]) -> str | None:
    """What a file with these keys is, for a message; None if that can't be told."""
    names = list(keys)
    for pattern, kind in _KINDS:
        if any(re.match(pattern, name) for name in names):
            return kind
    return None


# Where what is no model is put to use, beside one.
_OPTIONS = {
    "a LoRA": "--lora",
    "a textual-inversion embedding": "--embedding",
    "a VAE alone": "--vae",
    "a tiny autoencoder (TAESD) alone": "--tiny-vae",
}


def not_a_model(what: str) -> str:
    """For the message about a file that is `what`."""
    hint = f": {_OPTIONS[what]} takes it, beside a model" if what in _OPTIONS else ""
    return f"{what}, not a model{hint}"
