"""What a LoRA file says of itself: the family that it is for, what it was trained on."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from pellucid.backbones.mmdit import MMDiT
from pellucid.backbones.unet import UNet
from pellucid.checkpoints.families import REFINER, SD1, SD2, SD3, SDXL_BASE
from pellucid.checkpoints.lora.file import Found, Target
from pellucid.model import Model

_WIDTHS = {768: SD1.title, 1024: SD2.title, 2048: SDXL_BASE.title, 1280: REFINER.title}
# What trainers write, in "ss_base_model_version" and "modelspec.architecture".
_TOLD = (
    (("sdxl", "stable-diffusion-xl"), SDXL_BASE.title),
    (("sd_v1", "sd_1", "stable-diffusion-v1"), SD1.title),
    (("sd_v2", "sd_2", "stable-diffusion-v2"), SD2.title),
    (("sd3", "stable-diffusion-3"), SD3.title),
    (("flux",), "Flux"),
)
# Pieces of keys that only one family has, and none of those before it.
_PIECES = (
    (("double_blocks", "single_transformer_blocks"), "Flux"),
    (("joint_blocks", "attn.add_q_proj", "attn_add_q_proj"), SD3.title),
    (("lora_te2_", "text_encoder_2."), SDXL_BASE.title),  # SD3 has a second text encoder too
)


def family_of(found: Found) -> str | None:
    """The title of the family that a LoRA is for; None if it does not show."""
    for target in found.targets:
        sees_text = target.name.replace(".", "_").endswith("attn2_to_k")
        if sees_text and "down" in target.keys:
            shape = found.weights[target.keys["down"]].shape
            if len(shape) > 1 and shape[1] in _WIDTHS:
                return _WIDTHS[shape[1]]
    for field in ("modelspec.architecture", "ss_base_model_version"):
        told = found.weights.metadata.get(field, "").lower()
        for starts, title in _TOLD:
            if told.startswith(starts):
                return title
    for pieces, title in _PIECES:
        if any(piece in target.name for target in found.targets for piece in pieces):
            return title
    return None


def family_of_model(model: Model) -> str | None:
    """The title of the model's family; None for one that is not published, such as a small one."""
    if isinstance(model.backbone, MMDiT):
        return SD3.title
    if isinstance(model.backbone, UNet):
        return _WIDTHS.get(model.backbone.config.cross_attention_dim)
    return None


# ---------------------------------------------------------------- for a person

_TRIGGERS = ("modelspec.trigger_phrase", "ss_trigger_words", "activation text")
_ABOUT = (
    "ss_output_name",
    "ss_sd_model_name",
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_num_train_images",
    "ss_steps",
    "ss_clip_skip",
    "ss_training_comment",
    "modelspec.title",
    "modelspec.architecture",
)
TAGS = 12  # how many of the tags of the training pictures are told


def describe(found: Found) -> dict[str, Any]:
    """What `pellucid lora` says of a file."""
    metadata = found.weights.metadata
    types = {str(stored.dtype).removeprefix("torch.") for stored in found.weights.values()}
    facts: dict[str, Any] = {
        "family": family_of(found) or "not told by the file",
        "kinds": dict(Counter(map(_kind_told, found.targets))),
        "ranks": sorted(set(found.ranks.values())),
        "modules": dict(Counter(_part_told(target.name) for target in found.targets)),
        "types": sorted(types),
    }
    if triggers := [metadata[name] for name in _TRIGGERS if metadata.get(name)]:
        facts["trigger words"] = triggers
    if tags := _tags(metadata.get("ss_tag_frequency", "")):
        facts["commonest tags"] = tags
    facts |= {name: metadata[name] for name in _ABOUT if metadata.get(name)}
    if found.alien:
        facts["keys of no LoRA"] = list(found.alien)
    return facts


def _kind_told(target: Target) -> str:
    kind = target.kind or "full"
    return f"DoRA of {kind}" if {"magnitude", "lengths"} & target.keys.keys() else kind


def _part_told(target: str) -> str:
    flat = target.replace(".", "_").replace(":", "_")
    if flat.startswith(("lora_te2_", "text_encoder_2_")):
        return "second text encoder"
    return "text encoder" if flat.startswith(("lora_te", "text_encoder")) else "network"


def _tags(text: str) -> list[str]:
    """The commonest tags of the pictures that it was trained on: {"folder": {"tag": count}}."""
    try:
        folders = json.loads(text)
        sums: dict[str, int] = {}
        for folder in folders.values():
            for tag, count in folder.items():
                sums[tag.strip()] = sums.get(tag.strip(), 0) + int(count)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return []
    return sorted(sums, key=lambda tag: -sums[tag])[:TAGS]
