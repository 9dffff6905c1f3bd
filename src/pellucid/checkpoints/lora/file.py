"""LoRA files: what each of their keys is.

Read are the keys of kohya's trainer and of LyCORIS ("lora_unet_..."), of PEFT and diffusers
("unet. ... .lora_A.weight", and what diffusers wrote before), and of cloneofsimo's first LoRAs, which
number the modules ("unet:0:up").
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pellucid.checkpoints.families import what_is
from pellucid.checkpoints.header import CheckpointError
from pellucid.checkpoints.weights import Weights, open_weights
from pellucid.lora import Kind

UNET = "model.diffusion_model."  # in the original layout
FIRST = 3  # how many wrong keys an error names
CONFIG_BYTES = 2**20
_CONFIG_PARTS = ("text_encoder_2", "text_encoder", "unet", "transformer")

# How a key ends, and what the tensor is; the longest end that fits counts.
_ENDS: Mapping[str, str] = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "core",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "lora_changes.down.weight": "down",
    "lora_changes.up.weight": "up",
    ":down": "down",
    ":up": "up",
    ".alpha": "alpha",
    ".dora_scale": "magnitude",
    ".lora_magnitude_vector": "lengths",
    ".lora_magnitude_vector.weight": "lengths",
    ".lora_magnitude_vector.default.weight": "lengths",
    ".diff": "diff",
    ".w_norm": "diff",
    ".diff_b": "diff_b",
    ".b_norm": "diff_b",
} | {
    f".{name}": name
    for name in (
        *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    )
}
_ENDS_BY_LENGTH = sorted(_ENDS, key=len, reverse=True)

# What makes a change: all of the first names, and any of the second.
KINDS: Mapping[Kind, tuple[frozenset[str], frozenset[str]]] = {
    "LoRA": (frozenset({"down", "up"}), frozenset({"core"})),
    "LoHa": (
        frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
        frozenset({"hada_t1", "hada_t2"}),
    ),
    "LoKr": (frozenset(), frozenset(name for name in _ENDS.values() if name[:4] == "lokr")),
    "full": (frozenset({"diff"}), frozenset()),
}
# Of LyCORIS, and not read: how a key ends, and what it is then.
UNREAD = {".oft_blocks": "OFT", ".a1.weight": "GLoRA", ".on_input": "IA3"}
BESIDE = frozenset({"alpha", "magnitude", "lengths", "diff_b"})


@dataclass(frozen=True)
class Target:
    """What a file has for one module: what the tensors are -> their keys."""

    name: str
    keys: Mapping[str, str]

    @property
    def kind(self) -> Kind | None:
        """None: only a bias, or what belongs to no change."""
        names = set(self.keys) - BESIDE
        for kind, (needed, allowed) in KINDS.items():
            if names & (needed | allowed):
                return kind
        return None


@dataclass(frozen=True)
class Found:
    """A file, taken apart.

    alien: keys of no LoRA. scale: (target, rank) -> alpha / rank by PEFT's config; None if that
    does not say it.
    """

    path: Path
    weights: Weights
    targets: tuple[Target, ...]
    alien: tuple[str, ...]
    scale: Callable[[str, int], float | None]

    @property
    def ranks(self) -> dict[str, int]:
        """Target -> the rank of its change, where that is one."""
        rank_keys = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
        return {
            target.name: self.weights[key].shape[0]
            for target in self.targets
            if (key := next((target.keys[k] for k in rank_keys if k in target.keys), None))
            and self.weights[key].shape
        }


def examine(path: Path) -> Found:
    """What `path` holds, from its keys. Raises CheckpointError if that is no LoRA."""
    weights = open_weights(path)
    targets: dict[str, dict[str, str]] = {}
    alien = []
    for key in weights:
        end = next((end for end in _ENDS_BY_LENGTH if key.endswith(end)), None)
        if end is None or len(end) == len(key):
            alien.append(key)
            continue
        name = key.removesuffix(end).replace(".processor.", ".")
        keys = targets.setdefault(name, {})
        if _ENDS[end] in keys:
            raise CheckpointError(f"{path}: {key} and {keys[_ENDS[end]]} are the same thing")
        keys[_ENDS[end]] = key
    found = tuple(Target(name, keys) for name, keys in targets.items())
    if all(target.kind is None and "diff_b" not in target.keys for target in found):
        whole = "pellucid" in weights.metadata or any(key.startswith(UNET) for key in weights)
        what = "a whole model" if whole else what_is(weights)
        if other := {name for end, name in UNREAD.items() if any(k.endswith(end) for k in weights)}:
            raise CheckpointError(
                f"{path} is an adapter of the kind {min(other)}, which is not read; read are LoRA, "
                "LoCon, LoHa, LoKr, DoRA and full changes"
            )
        told = "no LoRA" if what in (None, "a LoRA") else f"{what}, not a LoRA"
        first = ", ".join(list(weights)[:FIRST])
        raise CheckpointError(f"{path} is {told}: its keys begin with {first or 'nothing'}")
    return Found(path, weights, found, tuple(alien), _scales(path, weights))


# ---------------------------------------------------------------- what stands beside the weights


def _scales(path: Path, weights: Weights) -> Callable[[str, int], float | None]:
    """`Found.scale`; PEFT's config is in the metadata or in a file beside."""
    text = weights.metadata.get("lora_adapter_metadata")
    config = path.with_name("adapter_config.json")
    if text is None and path.name.startswith("adapter_model") and config.is_file():
        if config.stat().st_size > CONFIG_BYTES:
            raise CheckpointError(f"{config} is no config: it has {config.stat().st_size} bytes")
        text = config.read_text("utf-8", "replace")
    if text is None:
        return lambda target, rank: None
    try:
        told: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its LoRA config is not JSON") from error
    if not isinstance(told, dict):
        raise CheckpointError(f"{path}: its LoRA config is not a JSON object")

    def scale(target: str, rank: int) -> float | None:
        # diffusers puts the configs of all parts into one, with the part in front of every name.
        prefix = next((f"{part}." for part in _CONFIG_PARTS if target.startswith(f"{part}.")), "")
        own = {k.removeprefix(prefix): v for k, v in told.items() if k.startswith(prefix)} or told
        alpha = own.get("lora_alpha", own.get("alpha"))
        pattern = own.get("alpha_pattern")
        for name, value in (pattern if isinstance(pattern, dict) else {}).items():
            if target.endswith(f".{name}"):
                alpha = value
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            return None
        return alpha / math.sqrt(rank) if own.get("use_rslora") else alpha / rank

    return scale
