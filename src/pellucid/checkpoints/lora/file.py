"""LoRA files: what each of their keys is.

Supported are the keys of kohya's trainer and of LyCORIS ("lora_unet_..."), of PEFT and diffusers
("unet. ... .lora_A.weight", and what diffusers wrote before), and of cloneofsimo's first LoRAs, which
number the modules ("unet:0:up").
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pellucid.checkpoints.identify import LORA, what_is
from pellucid.checkpoints.key_names import UNET_PREFIX, prefix_of
from pellucid.checkpoints.lora.peft_config import PeftConfigs
from pellucid.checkpoints.weights import Weights, open_weights
from pellucid.lora import Kind
from pellucid.safetensors_header import CheckpointError, first_keys

# How a key ends, and what the tensor is; the longest matching end counts.
_ENDS: Mapping[str, str] = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "core",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_B.bias": "up_bias",
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
# PEFT's modules have the name of the adapter in their keys, "default" or any other.
_ADAPTER = re.compile(
    r"(\.lora_(?:[AB]|magnitude_vector))\.(?!weight$|bias$)[^.]+(?=$|\.weight$|\.bias$)"
)
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
# Kinds of LyCORIS and PEFT that are not supported, by how a key ends.
UNSUPPORTED = re.compile(
    r"\.((?P<GLoRA>[ab][12]\.weight)|(?P<IA3>on_input|ia3_l)|(?P<AdaLoRA>lora_E|ranknum)"
    r"|(?P<VeRA>p?vera_([AB]|lambda_[bd]))"
    r"|(?P<other>adamss|beft|boft|c3a|deft|delora|fourierft|frod|glora|gralora|hira|hra|lily|miss|bone"
    r"|oft|osf|peanut|poly|psoft|randlora|road|shadow|shira|supertuning|tinylora|trainable_tokens"
    r"|unilora|vblora|waveft)_\w+)(\.weight|\.default)*$"
)
MODIFIERS = frozenset({"alpha", "magnitude", "lengths", "diff_b", "up_bias"})
IN_FOLDER = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")  # PEFT's, diffusers'

# Words inside of a LoRA: A1111's bundles, and the endings that they have for each text tower.
_BUNDLED = re.compile(
    r"bundle_emb\.(?P<word>.*\S.*)\.(?P<end>string_to_param\.\*|emb_params|clip_[lg])"
)
_WORD = "<embed>"  # in cloneofsimo's metadata, for a key that is a word


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

    alien: keys that are not part of a LoRA. words: the words that it brings -> part of the model
    -> the key of their vectors. configs: PEFT's.
    """

    path: Path
    weights: Weights
    targets: tuple[Target, ...]
    alien: tuple[str, ...]
    words: Mapping[str, Mapping[str, str]]
    configs: PeftConfigs

    def rank(self, target: Target) -> int | None:
        """The rank of a change whose shapes do not show it, by PEFT's config or the metadata."""
        if config := self.configs.of(target.name):
            return config[0].rank(config[1]) or None
        rank = self.weights.metadata.get("ss_network_dim", "")
        second = self.weights[target.keys["lokr_w2"]].shape if "lokr_w2" in target.keys else ()
        if math.prod(second[2:]) > 1:  # LyCORIS may have another rank for convolutions
            try:
                arguments = json.loads(self.weights.metadata.get("ss_network_args", "{}"))
                rank = str(arguments.get("conv_dim") or rank)
            except (ValueError, AttributeError, RecursionError):
                pass
        return int(rank) if re.fullmatch(r"[1-9]\d{0,5}", rank) else None

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
        here = next((path / name for name in IN_FOLDER if (path / name).is_file()), None)
        known = "" if here is None else f", such as {here}"
        raise CheckpointError(f"{path} is not a file; expected a LoRA's weights{known}")
    weights = open_weights(path)
    targets: dict[str, dict[str, str]] = {}
    words: dict[str, dict[str, str]] = {}
    alien = []
    for key in weights:
        if bundled := _BUNDLED.fullmatch(key):
            part = "text_2" if bundled["end"] == "clip_g" else "text"
            words.setdefault(bundled["word"], {})[part] = key
            continue
        if weights.metadata.get(key) == _WORD:
            words[key] = {"text": key}
            continue
        plain = _ADAPTER.sub(r"\1", key)
        end = next((end for end in _ENDS_BY_LENGTH if plain.endswith(end)), None)
        if end is None or len(end) == len(plain):
            alien.append(key)
            continue
        name = plain.removesuffix(end).replace(".processor.", ".")
        keys = targets.setdefault(name, {})
        if _ENDS[end] in keys:
            raise CheckpointError(f"{path}: {key} and {keys[_ENDS[end]]} have the same meaning")
        keys[_ENDS[end]] = key
    configs = PeftConfigs(path, weights)
    found = tuple(Target(name, keys) for name, keys in targets.items())
    if all(target.kind is None and "diff_b" not in target.keys for target in found):
        raise _not_a_lora(path, weights)
    return LoraFile(path, weights, found, tuple(alien), words, configs)


def _not_a_lora(path: Path, weights: Weights) -> CheckpointError:
    if found := next((m for key in weights if (m := UNSUPPORTED.search(key))), None):
        kind = next(name for name, text in found.groupdict().items() if text is not None)
        return CheckpointError(
            f"{path} is an adapter of the kind {found['other'].upper() if kind == 'other' else kind}, "
            "which is not supported; supported are LoRA, LoCon, LoHa, LoKr, DoRA and full changes"
        )
    whole = "pellucid" in weights.metadata or prefix_of(weights, (UNET_PREFIX,)) is not None
    what = "a whole model" if whole else what_is(weights)
    kind = "not a LoRA" if what in (None, LORA) else f"{what}, not a LoRA"
    return CheckpointError(f"{path} is {kind}: its keys begin with {first_keys(weights)}")
