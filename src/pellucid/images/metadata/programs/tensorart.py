"""Tensor.Art: JSON under "generation_data", next to ComfyUI's graph."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pellucid.images.metadata.programs import comfyui
from pellucid.images.metadata.settings import RecordedSettings, json_object, renamed

PROGRAM = "Tensor.Art"
KEY = comfyui.TENSORART
NAMES = {
    "negativePrompt": "negative_prompt",
    "cfgScale": "guidance",
    "samplerName": "sampler",
    "clipSkip": "clip_skip",
    "sdVae": "vae",
}
IDLE: dict[str, Any] = dict.fromkeys(
    ("baseModel", "imageCount", "workEngine", "etaNoiseSeedDelta", "sdxl", "ksamplerName")
)
IDLE |= {"sdVae": "Automatic"}
OF_GRAPH = ("sampler", "spacing", "seed", "steps", "guidance")
"""What the graph says exactly, where it can be read."""


def matches(texts: Mapping[str, str]) -> bool:
    return KEY in texts


def read(texts: Mapping[str, str]) -> RecordedSettings:
    values = json_object(texts[KEY].strip("\0 \n"))
    found = renamed(values, NAMES, IDLE)
    base = values.get("baseModel")
    if isinstance(base, dict) and isinstance(base.get("modelFileName"), str):
        found.fields["model"] = base["modelFileName"]
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        drawn = comfyui.read(texts).fields
        found.fields.update({name: drawn[name] for name in OF_GRAPH if name in drawn})
    return found
