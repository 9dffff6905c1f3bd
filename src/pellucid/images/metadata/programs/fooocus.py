"""Fooocus, and programs that followed it: a JSON object where A1111 has its text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pellucid.images.metadata.settings import (
    SAME,
    RecordedSettings,
    is_json_object,
    json_object,
    renamed,
)

PROGRAM = "Fooocus"
NAMES = {
    "negative": "negative_prompt",
    "guidance_scale": "guidance",
    "cfg": "guidance",
    "cfg_scale": "guidance",
    "sampler_name": "sampler",
    "scheduler": "spacing",
    "clip_skip": "clip_skip",
    "base_model": "model",
    "base_model_name": "model",
    "refiner_model": "refiner",
}
IDLE: dict[str, Any] = dict.fromkeys(
    (
        *("version", "metadata_scheme", "base_model_hash", "refiner_model_hash", "created_by"),
        *("software", "full_prompt", "full_negative_prompt", "performance", "resolution"),
    )
)
IDLE |= {"styles": "[]", "vae": "Default (model)", "refiner_model": "None", "denoise": 1}


def _text(texts: Mapping[str, str]) -> str:
    forks = ("Comment",) if "fooocus_scheme" in texts else ()  # others have that, too
    for key in ("parameters", "UserComment", "comment", *forks):
        if texts.get(key, "").lstrip().startswith("{"):
            return texts[key]
    return ""


def matches(texts: Mapping[str, str]) -> bool:
    text = _text(texts)
    if "fooocus_scheme" in texts or "fooocus" in texts.get("Software", "").lower():
        return bool(text)
    if not is_json_object(text):
        return False
    named = {name.lower() for name in json_object(text)}  # cameras have a "prompt" too
    return "prompt" in named and bool(named & ({*NAMES, *SAME} - {"prompt"}))


def read(texts: Mapping[str, str]) -> RecordedSettings:
    values = {
        name.lower().replace(" ", "_"): value for name, value in json_object(_text(texts)).items()
    }
    if values.get("refiner_model") in (None, "None"):
        values.pop("refiner_switch", None)
    found = renamed(values, NAMES, IDLE)
    sides = re.findall(r"\d{1,5}", str(values.get("resolution", ""))[:40])
    if len(sides) == 2:
        found.fields.update(width=int(sides[0]), height=int(sides[1]))
    return found
