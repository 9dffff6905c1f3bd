"""Easy Diffusion: each setting is a text of its own; in a JPEG or WebP all are a JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.images.metadata.settings import RecordedSettings, is_json_object, json_object, renamed

PROGRAM = "Easy Diffusion"
NAMES = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "sampler_name": "sampler",
    "prompt_strength": "strength",
    "clip_skip": "clip_skip",
    "use_stable_diffusion_model": "model",
    "use_vae_model": "vae",
}
IDLE: dict[str, Any] = dict.fromkeys(
    ("original_prompt", "created_at", "Software", "stream_progress")
)
EMPTY = ("None", "False", "[]")


def _values(texts: Mapping[str, str]) -> Mapping[str, Any]:
    comment = texts.get("UserComment", "")
    return json_object(comment) if is_json_object(comment) else texts


def matches(texts: Mapping[str, str]) -> bool:
    return {"prompt", "num_inference_steps"} <= _values(texts).keys()


def read(texts: Mapping[str, str]) -> RecordedSettings:
    values = {name: value for name, value in _values(texts).items() if value not in EMPTY}
    if values.get("clip_skip") in (True, "True"):  # it is on or off
        values["clip_skip"] = 2
    return renamed(values, NAMES, IDLE)
