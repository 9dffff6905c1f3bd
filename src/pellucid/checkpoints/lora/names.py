"""Which module of a model a LoRA's key means.

The keys of most files have "_" where the modules' names have ".", and names have "_" of their own,
so a key cannot be split: every name of the model is written as such a key, and keys are looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from pellucid.backbones.unet import UNet
from pellucid.checkpoints.key_names import unet_locations
from pellucid.lora import PARTS
from pellucid.model import Model


class ModulePath(NamedTuple):
    """A module of a model; part: one of `lora.PARTS`."""

    part: str
    module: str


# The prefix of a module's name, and the part that it means. Without a prefix, and with those of
# trainers' own wrappers, it is the network.
_PREFIXES: tuple[tuple[str, str], ...] = (
    ("lora_te2_", "text_2"),
    ("text_encoder_2_", "text_2"),
    ("lora_te1_", "text"),
    ("lora_te_", "text"),
    ("text_encoder_", "text"),
    ("lora_unet_", "backbone"),
    ("lora_transformer_", "backbone"),
    ("lycoris_", "backbone"),
    ("lycoris_", "text"),
    ("unet_", "backbone"),
    ("transformer_", "backbone"),
    ("model_diffusion_model_", "backbone"),
    ("diffusion_model_", "backbone"),
    ("base_model_model_", "backbone"),
    ("base_model_model_", "text"),
    ("", "backbone"),
    ("", "text"),
)


class Names:
    """The modules of a model by the names that LoRAs have for them."""

    def __init__(self, model: Model) -> None:
        self.known: dict[str, dict[str, str]] = {}
        for part in PARTS:
            network = getattr(model, part)
            self.known[part] = {} if network is None else _known(network)

    def find(self, target: str) -> ModulePath | None:
        """The module that `target` means, for instance "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "unet.mid_block.attentions.0.proj_in"."""
        flat = target.replace(".", "_")
        for prefix, part in _PREFIXES:
            if flat.startswith(prefix):
                module = self.known[part].get(flat.removeprefix(prefix))
                if module is not None:
                    return ModulePath(part, module)
        return None


def _known(network: nn.Module) -> dict[str, str]:
    """Flat name -> name, under all names that are in use."""
    modules = [name for name, module in network.named_modules() if _has_weights(module)]
    names = {name: name for name in modules}
    for name in modules:
        names.setdefault(name.removeprefix("text_model."), name)
        # The attention of diffusers before 0.22: "to_out_lora", in text towers "to_q_lora" too.
        names.setdefault(name.replace("to_out.0", "to_out"), name)
        old = re.sub(r"self_attn\.([qkv]|out)_proj", r"self_attn.to_\1", name)
        names.setdefault(old, name)
        names.setdefault(old.removeprefix("text_model."), name)
    if isinstance(network, UNet):
        names |= {old: new for old, new in _original(network, modules) if old not in names}
    return {name.replace(".", "_"): module for name, module in names.items()}


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _original(unet: UNet, modules: list[str]) -> Iterator[tuple[str, str]]:
    """The names of latent diffusion, which the LoRAs of SDXL have."""
    published = [name for name in modules if not name.startswith("map_embedding")]
    locations = unet_locations([f"{name}.weight" for name in published], unet.config)
    for name in published:
        yield locations[f"{name}.weight"].key.removesuffix(".weight"), name


def kohya_names(model: Model, part: str) -> dict[str, str]:
    """Module -> its key in the files of kohya's trainer, which most programs read."""
    network = getattr(model, part)
    modules = [name for name, module in network.named_modules() if _has_weights(module)]
    names = {name: name for name in modules}
    two = model.text_2 is not None
    if part == "backbone":
        start = "lora_unet_" if isinstance(network, UNet) else "lora_transformer_"
        if two and isinstance(network, UNet):
            names = {name: original for original, name in _original(network, modules)}
    else:
        start = {"text": "lora_te1_", "text_2": "lora_te2_"}[part] if two else "lora_te_"
    return {name: start + flat.replace(".", "_") for name, flat in names.items()}


# ---------------------------------------------------------------- by order

# The classes whose linear layers and convolutions cloneofsimo's LoRAs number, and the names of our
# modules inside them.
_CLASSES: Mapping[str, str] = {
    "CrossAttention": r"\.attn[12]\.",
    "Attention": r"\.attn[12]\.",
    "GEGLU": r"\.ff\.net\.0\.",
    "FeedForward": r"\.ff\.",
    "ResnetBlock2D": r"\.resnets\.",
    "CLIPAttention": r"\.self_attn\.",
    "CLIPMLP": r"\.mlp\.",
}
# The order of diffusers' and transformers' modules, where it differs from ours. At first the
# feed-forward layer was between the two attentions.
_ORDER = {
    name: place
    for names in (
        ("conv_in", "time_embedding", "down_blocks", "up_blocks", "mid_block", "conv_out"),
        ("attentions", "resnets", "downsamplers", "upsamplers"),
        ("norm", "proj_in", "transformer_blocks", "proj_out"),
        ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut"),
        ("to_q", "to_k", "to_v", "to_out"),
        ("k_proj", "v_proj", "q_proj", "out_proj"),
        ("self_attn", "layer_norm1", "mlp", "layer_norm2"),
        ("fc1", "fc2"),
    )
    for place, name in enumerate(names)
}
_BLOCKS = ({"attn1": 0, "ff": 1, "attn2": 2}, {"attn1": 0, "attn2": 1, "ff": 2})


def in_order(network: nn.Module, classes: list[Any]) -> list[list[str]]:
    """The modules inside these classes, in each of the orders that diffusers has had.

    Raises ValueError for an unknown class.
    """
    if unknown := [name for name in classes if name not in _CLASSES]:
        raise ValueError(
            f"it counts the modules of {unknown[0]!r}; known are {', '.join(_CLASSES)}"
        )
    inside = re.compile("|".join(_CLASSES[name] for name in classes) or "$.")
    convolutions = "ResnetBlock2D" in classes  # the extended kind
    kinds = (nn.Linear, nn.Conv2d) if convolutions else (nn.Linear,)
    found = [
        name
        for name, module in network.named_modules()
        if isinstance(module, kinds) and inside.search(name)
    ]

    def place(blocks: Mapping[str, int]) -> Any:
        ranks = {**_ORDER, **blocks}
        return lambda name: [
            int(piece) if piece.isdecimal() else ranks.get(piece, 0) for piece in name.split(".")
        ]

    return [sorted(found, key=place(blocks)) for blocks in _BLOCKS]
