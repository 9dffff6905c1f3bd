"""InvokeAI: JSON under "invokeai_metadata" or "sd-metadata", a command line under "Dream"."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pellucid.images.metadata.settings import RecordedSettings, json_object, renamed

PROGRAM = "InvokeAI"
KEYS = ("invokeai_metadata", "invokeai", "sd-metadata", "Dream")
NAMES = {
    "positive_prompt": "prompt",
    "cfg_scale": "guidance",
    "cfg_rescale_multiplier": "rescale",
    "scheduler": "sampler",  # InvokeAI's word for it
    "model_weights": "model",
    "refiner_model": "refiner",
}
IDLE: dict[str, Any] = dict.fromkeys(
    (
        *("app_version", "app_id", "generation_mode", "rand_device", "type", "postprocessing"),
        *("model_hash", "canvas_v2_metadata", "orig_hash", "image", "clip_skip"),
    )
)
DREAM = {"-s": "steps", "-S": "seed", "-W": "width", "-H": "height", "-C": "guidance"}
DREAM |= {"-A": "sampler", "-f": "strength"}


def matches(texts: Mapping[str, str]) -> bool:
    return any(key in texts for key in KEYS)


def read(texts: Mapping[str, str]) -> RecordedSettings:
    text = next((texts[key] for key in KEYS[:3] if key in texts), None)
    if text is None:
        return RecordedSettings(_dream(texts["Dream"]))
    values = json_object(text)
    if isinstance(values.get("image"), dict):  # version 2, whose "model" is "stable diffusion"
        values = {n: value for n, value in values.items() if n != "model"} | values["image"]
    fields, unused, *_ = renamed(values, NAMES, IDLE)
    if isinstance(fields.get("prompt"), list):
        fields |= _single(fields["prompt"])
    for name in ("model", "vae", "refiner"):
        if isinstance(fields.get(name), dict):
            fields[name] = fields[name].get("name") or fields[name].get("model_name") or "unknown"
    if isinstance(values.get("clip_skip"), int) and values["clip_skip"] > 0:
        fields["clip_skip"] = values["clip_skip"] + 1  # of layers that are left out
    return RecordedSettings(fields, unused)


def _single(prompts: list[Any]) -> dict[str, Any]:
    """Version 2 has a list of prompts, and what to avoid in square brackets in them."""
    if len(prompts) != 1 or not isinstance(prompts[0], dict):
        raise ValueError(f"it has {len(prompts)} prompts")
    return _avoided(str(prompts[0].get("prompt", "")))


def _avoided(prompt: str) -> dict[str, Any]:
    avoid = re.findall(r"\[([^\[\]]*)\]", prompt)
    rest = re.sub(r"\s*\[[^\[\]]*\]", "", prompt)
    return {"prompt": rest.strip(), "negative_prompt": " ".join(avoid)}


def _dream(text: str) -> dict[str, Any]:
    """The command line of version 1: a prompt in quotes and options of one letter."""
    prompt, *words = shlex.split(text)
    fields = _avoided(prompt)
    for word in words:
        match = re.fullmatch(r"(-[a-zA-Z])(.+)", word)
        name = DREAM.get(match[1]) if match else None
        if match is not None and name is not None:
            fields[name] = match[2]
    for before, word in pairwise(words):
        if before in DREAM:
            fields[DREAM[before]] = word
    return fields
