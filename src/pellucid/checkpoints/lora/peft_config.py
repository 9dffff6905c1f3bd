"""The config of a PEFT adapter: every field is used, or refused by name.

PEFT keeps it in adapter_config.json next to the weights, diffusers in the metadata of the file, there
with the part that it is for in front of every field ("unet.lora_alpha").
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pellucid.checkpoints.json_config import JsonConfig
from pellucid.checkpoints.weights import Weights
from pellucid.safetensors_header import CheckpointError

PARTS = ("text_encoder_2", "text_encoder", "unet", "transformer")
WRAPPER = "base_model.model."  # PEFT's own, in front of every key
TYPES = ("LORA", "LOHA", "LOKR")
DEFAULT = 8  # PEFT's for the rank and for alpha

# What would change what the weights mean, or would change other weights.
FIXED: Mapping[str, Any] = {
    "bias": "none",
    "fan_in_fan_out": False,
    "layer_replication": None,
    "megatron_config": None,
    "modules_to_save": None,
    "target_parameters": None,
    "trainable_token_indices": None,
}
# How it was trained and which modules it has, which the keys show too.
IDLE = (
    *("auto_mapping", "base_model_name_or_path", "decompose_both", "decompose_factor"),
    *("ensure_weight_tying", "eva_config", "exclude_modules", "inference_mode", "init_weights"),
    *("layers_pattern", "layers_to_transform", "loftq_config", "lora_bias", "lora_dropout"),
    *("megatron_core", "module_dropout", "peft_version", "qalora_group_size", "rank_dropout"),
    *("rank_dropout_scale", "revision", "runtime_config", "target_modules", "task_type"),
    "use_effective_conv2d",
)
# Other ways to begin, such as PiSSA's, change the model's own weights too.
BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal", "mica")

MOST_REPEATS = 3  # in a pattern; with more of them, matching can take for ever
REPEAT = re.compile(r"(?<!\\)[*+{]")
REPEATED_GROUP = re.compile(r"\)[*+{]")


class PeftConfig:
    """The fields of one adapter. Raises CheckpointError for a field that is not supported."""

    def __init__(self, settings: JsonConfig) -> None:
        self.settings = settings
        settings.word("peft_type", TYPES[0], dict.fromkeys(TYPES))
        self._dora = settings.flag("use_dora", False)
        beginning = settings.get("init_lora_weights", True)
        if beginning not in BEGINNINGS:
            raise settings.refused("init_lora_weights", f"one of {BEGINNINGS}")
        settings.fixed(FIXED)
        self._rank = settings.whole("r", DEFAULT, 0)  # 0: rank_pattern has all of them
        name = "alpha" if settings.get("alpha") is not None else "lora_alpha"
        self._alpha = settings.number(name, DEFAULT)
        self._root = settings.flag("use_rslora", False)
        self._ranks = self._patterns("rank_pattern")
        self._alphas = self._patterns("alpha_pattern")
        settings.finish(IDLE)

    def _patterns(self, key: str) -> list[tuple[re.Pattern[str], float]]:
        values = self.settings.get(key, {})
        if not isinstance(values, dict):
            raise self.settings.refused(key, "an object of patterns and numbers")
        patterns = []
        for pattern, value in values.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            slow = len(REPEAT.findall(pattern)) > MOST_REPEATS or REPEATED_GROUP.search(pattern)
            if not number or not math.isfinite(value) or slow:
                raise self.settings.refused(
                    key, f"numbers for patterns with at most {MOST_REPEATS} repeats"
                )
            try:
                patterns.append((re.compile(rf"(.*\.)?({pattern})$"), float(value)))
            except (re.error, OverflowError, RecursionError) as error:
                raise self.settings.refused(key, f"valid patterns: {error}") from error
        return patterns

    def check(self, module: str, rank: int | None, tensors: Collection[str]) -> None:
        """CheckpointError: the tensors of a LoRA are not those that the config says. `rank` is theirs;
        None where the shapes do not show it."""
        if "up" not in tensors:
            return
        if self.settings.get("r") is not None and rank not in (None, self.rank(module)):
            raise CheckpointError(
                f"{self.settings.path}: the rank of {module} is {self.rank(module)}, in the file of "
                f"the weights it is {rank}"
            )
        if self._dora and not {"lengths", "magnitude"} & set(tensors):
            raise CheckpointError(
                f"{self.settings.path}: use_dora is true, and {module} has no lora_magnitude_vector"
            )

    def rank(self, module: str) -> int:
        """The rank of a module's change."""
        return int(_first(self._ranks, module, self._rank))

    def scale(self, module: str, rank: int) -> float:
        """How much a module's change counts that has this rank."""
        alpha = _first(self._alphas, module, self._alpha)
        return alpha / math.sqrt(rank) if self._root else alpha / rank


def _first(patterns: list[tuple[re.Pattern[str], float]], module: str, usual: float) -> float:
    """The number of the first pattern that matches, as in PEFT."""
    return next((value for pattern, value in patterns if pattern.match(module)), usual)


class PeftConfigs:
    """The configs of all parts in a file; there may be none."""

    def __init__(self, path: Path, weights: Weights) -> None:
        settings = _settings(path, weights)
        self._configs = {}
        if settings is not None:
            values = settings.values
            for part in (f"{name}." for name in PARTS):
                own = {k.removeprefix(part): v for k, v in values.items() if k.startswith(part)}
                if own:
                    self._configs[part] = PeftConfig(JsonConfig(settings.path, own))
            if not self._configs:
                self._configs[""] = PeftConfig(settings)

    def of(self, target: str) -> tuple[PeftConfig, str] | None:
        """The config for a target, and the module's name in it."""
        part = next((part for part in self._configs if target.startswith(part)), None)
        if part is None:
            return None
        return self._configs[part], target.removeprefix(part).removeprefix(WRAPPER)


def _settings(path: Path, weights: Weights) -> JsonConfig | None:
    config = path.with_name("adapter_config.json")
    text = weights.metadata.get("lora_adapter_metadata")
    if text is None:
        sibling = path.name.startswith("adapter_model") and config.exists()
        return JsonConfig.open(config) if sibling else None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its LoRA config is not JSON") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: its LoRA config is not a JSON object")
    return JsonConfig(path, values)
