"""LoRA files: what each of their keys is.

Supported are the keys of kohya's trainer and of LyCORIS ("lora_unet_..."), of PEFT and diffusers
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

from pellucid.checkpoints.header import CheckpointError, first_keys
from pellucid.checkpoints.identify import LORA, what_is
from pellucid.checkpoints.key_names import UNET_PREFIX, prefix_of
from pellucid.checkpoints.weights import Weights, open_weights
from pellucid.lora import Kind

CONFIG_BYTES = 2**20
_CONFIG_PARTS = ("text_encoder_2", "text_encoder", "unet", "transformer")

# How a key ends, and what the tensor is; the longest matching end counts.
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
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
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

# The tensors of a change: all of the first names, and any of the second.
KINDS: Mapping[Kind, tuple[frozenset[str], frozenset[str]]] = {
    "LoRA": (frozenset({"down", "up"}), frozenset({"core"})),
    "LoHa": (
        frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),
        frozenset({"hada_t1", "hada_t2"}),
    ),
    "LoKr": (frozenset(), frozenset(name for name in _ENDS.values() if name[:4] == "lokr")),
    "full": (frozenset({"diff"}), frozenset()),
}
# Kinds of LyCORIS that are not supported, by how a key ends.
UNSUPPORTED = {".oft_blocks": "OFT", ".a1.weight": "GLoRA", ".on_input": "IA3"}
MODIFIERS = frozenset({"alpha", "magnitude", "lengths", "diff_b"})


@dataclass(frozen=True)
class Target:
    """What a file has for one module: names of tensors -> their keys."""

    name: str
    keys: Mapping[str, str]

    @property
    def kind(self) -> Kind | None:
        """None: only a bias, or keys that are not part of any change."""
        names = set(self.keys) - MODIFIERS
        for kind, (needed, allowed) in KINDS.items():
            if names & (needed | allowed):
                return kind
        return None


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA file holds.

    alien: keys that are not part of a LoRA. scale: (target, rank) -> alpha / rank by PEFT's config;
    None if that does not give it.
    """

    path: Path
    weights: Weights
    targets: tuple[Target, ...]
    alien: tuple[str, ...]
    scale: Callable[[str, int], float | None]

    @property
    def ranks(self) -> dict[str, int]:
        """Target -> the rank of its change, if it has one."""
        rank_keys = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
        return {
            target.name: self.weights[key].shape[0]
            for target in self.targets
            if (key := next((target.keys[k] for k in rank_keys if k in target.keys), None))
            and self.weights[key].shape
        }


def examine(path: Path) -> LoraFile:
    """What `path` holds, by its keys. Raises CheckpointError if that is not a LoRA."""
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; expected a LoRA's weights")
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
            raise CheckpointError(f"{path}: {key} and {keys[_ENDS[end]]} have the same meaning")
        keys[_ENDS[end]] = key
    found = tuple(Target(name, keys) for name, keys in targets.items())
    if all(target.kind is None and "diff_b" not in target.keys for target in found):
        raise _not_a_lora(path, weights)
    return LoraFile(path, weights, found, tuple(alien), _scales(path, weights))


def _not_a_lora(path: Path, weights: Weights) -> CheckpointError:
    if other := {
        kind for end, kind in UNSUPPORTED.items() if any(k.endswith(end) for k in weights)
    }:
        return CheckpointError(
            f"{path} is an adapter of the kind {min(other)}, which is not supported; supported are "
            "LoRA, LoCon, LoHa, LoKr, DoRA and full changes"
        )
    whole = "pellucid" in weights.metadata or prefix_of(weights, (UNET_PREFIX,)) is not None
    what = "a whole model" if whole else what_is(weights)
    kind = "not a LoRA" if what in (None, LORA) else f"{what}, not a LoRA"
    return CheckpointError(f"{path} is {kind}: its keys begin with {first_keys(weights)}")


# ---------------------------------------------------------------- the config of PEFT


def _scales(path: Path, weights: Weights) -> Callable[[str, int], float | None]:
    """`LoraFile.scale`; PEFT's config is in the metadata or in a file next to the weights."""
    text = weights.metadata.get("lora_adapter_metadata")
    config = path.with_name("adapter_config.json")
    if text is None and path.name.startswith("adapter_model") and config.is_file():
        if config.stat().st_size > CONFIG_BYTES:
            raise CheckpointError(
                f"{config} has {config.stat().st_size} bytes, too many for a config"
            )
        text = config.read_text("utf-8", "replace")
    if text is None:
        return lambda target, rank: None
    try:
        settings: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its LoRA config is not JSON") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: its LoRA config is not a JSON object")

    def scale(target: str, rank: int) -> float | None:
        # diffusers puts the configs of all parts into one, with the part's name as prefix.
        prefix = next((f"{part}." for part in _CONFIG_PARTS if target.startswith(f"{part}.")), "")
        own = {k.removeprefix(prefix): v for k, v in settings.items() if k.startswith(prefix)}
        own = own or settings
        alpha = own.get("lora_alpha", own.get("alpha"))
        pattern = own.get("alpha_pattern")
        for name, value in (pattern if isinstance(pattern, dict) else {}).items():
            if target.endswith(f".{name}"):
                alpha = value
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            return None
        return alpha / math.sqrt(rank) if own.get("use_rslora") else alpha / rank

    return scale
