"""SwarmUI: a JSON object under "parameters", with its settings in "sui_image_params"."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PureWindowsPath
from typing import Any

from pellucid.images.metadata.settings import RecordedSettings, json_object, renamed

PROGRAM = "SwarmUI"
KEY = "sui_image_params"
NAMES = {
    "negativeprompt": "negative_prompt",
    "cfgscale": "guidance",
    "scheduler": "spacing",
    "variationseed": "variation_seed",
    "variationseedstrength": "variation_strength",
    "initimagecreativity": "strength",
    "refinermodel": "refiner",
}
IDLE: dict[str, Any] = dict.fromkeys(
    (
        "clipstopatlayer",
        "sidelength",
        "swarm_version",
        "aspectratio",
        "images",
        "date",
        "generation_time",
        "automaticvae",
    )
)


def _text(texts: Mapping[str, str]) -> str:
    named = (texts.get(key, "") for key in ("parameters", "UserComment", "comment"))
    return next((text for text in named if KEY in text and text.lstrip().startswith("{")), "")


def matches(texts: Mapping[str, str]) -> bool:
    return bool(_text(texts))


def read(texts: Mapping[str, str]) -> RecordedSettings:
    values = json_object(_text(texts)).get(KEY)
    if not isinstance(values, dict):
        raise ValueError(f"{KEY} is not an object")
    found = renamed(values, NAMES, IDLE)
    for name in ("model", "vae", "refiner"):
        if isinstance(found.fields.get(name), str):  # with folders
            found.fields[name] = PureWindowsPath(found.fields[name]).name
    layer = values.get("clipstopatlayer")
    if isinstance(layer, int) and layer < 0:
        found.fields["clip_skip"] = -layer
    return found
