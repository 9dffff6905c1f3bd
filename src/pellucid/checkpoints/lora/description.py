"""What a LoRA file shows: the family that it is for, and what it was trained on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from pellucid.backbones.unet import UNetConfig
from pellucid.checkpoints import families
from pellucid.checkpoints.assembly import type_name
from pellucid.checkpoints.identify import LORA, what_is
from pellucid.checkpoints.lora.file import LoraFile, Target, examine
from pellucid.checkpoints.weights import CheckpointSource
from pellucid.model import Model

# Families whose models are not supported: versions in the metadata, and pieces of keys.
_FLUX: tuple[str, tuple[str, ...], tuple[str, ...]] = (
    "Flux",
    ("flux",),
    ("double_blocks", "single_transformer_blocks"),
)


def family_of(found: LoraFile) -> str | None:
    """The title of the family that a LoRA is for; None if that does not show."""
    for target in found.targets:
        sees_text = target.name.replace(".", "_").endswith("attn2_to_k")
        if sees_text and "down" in target.keys:
            shape = found.weights[target.keys["down"]].shape
            family = families.by_context(UNetConfig, shape[1]) if len(shape) > 1 else None
            if family is not None:
                return family.title
    known = [_FLUX]
    known += [(f.title, f.lora_versions, f.lora_keys) for f in families.known().values()]
    for field in ("modelspec.architecture", "ss_base_model_version"):
        version = found.weights.metadata.get(field, "").lower()
        for title, starts, _ in known:
            if version.startswith(starts):
                return title
    for title, _, pieces in known:
        if any(piece in target.name for target in found.targets for piece in pieces):
            return title
    return None


def family_of_model(model: Model) -> str | None:
    """The title of the model's family; None if its size is not the published one."""
    if isinstance(model.config, UNetConfig):
        family = families.by_context(UNetConfig, model.config.cross_attention_dim)
    else:
        family = families.nearest_to(model)
    return None if family is None else family.title


def matches(source: CheckpointSource) -> bool:
    """Whether it is a file with a LoRA's keys."""
    return what_is(source.keys) == LORA


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
TAGS = 12  # how many tags of the training pictures are reported


def describe(source: CheckpointSource) -> dict[str, Any]:
    """What `pellucid info` reports of a file."""
    return {"kind": LORA} | describe_lora(source.path)


def describe_lora(path: str | Path) -> dict[str, Any]:
    """What can be said of a LoRA from its file alone. Raises CheckpointError if it is not one."""
    found = examine(Path(path))
    metadata = found.weights.metadata
    types = {type_name(stored.dtype) for stored in found.weights.values()}
    facts: dict[str, Any] = {
        "family": family_of(found) or "not given by the file",
        "kinds": dict(Counter(map(_kind_name, found.targets))),
        "ranks": sorted(set(found.ranks.values())),
        "modules": dict(Counter(_part_name(target.name) for target in found.targets)),
        "types": sorted(types),
    }
    if found.words:
        facts["words"] = list(found.words)
    if triggers := [metadata[name] for name in _TRIGGERS if metadata.get(name)]:
        facts["trigger words"] = triggers
    if tags := _tags(metadata.get("ss_tag_frequency", "")):
        facts["commonest tags"] = tags
    facts |= {name: metadata[name] for name in _ABOUT if metadata.get(name)}
    if found.alien:
        facts["keys of no LoRA"] = list(found.alien)
    return facts


def _kind_name(target: Target) -> str:
    kind = target.kind or "full"
    return f"DoRA of {kind}" if {"magnitude", "lengths"} & target.keys.keys() else kind


def _part_name(target: str) -> str:
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
