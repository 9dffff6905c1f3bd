"""Easy Diffusion: each setting is a text of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.images.metadata.settings import RecordedSettings, renamed

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


def matches(texts: Mapping[str, str]) -> bool:
    return "prompt" in texts and "num_inference_steps" in texts


def read(texts: Mapping[str, str]) -> RecordedSettings:
    return renamed({name: t for name, t in texts.items() if t not in EMPTY}, NAMES, IDLE)
