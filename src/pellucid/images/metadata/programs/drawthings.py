"""Draw Things: a JSON object as the user comment of the XMP, or of the EXIF."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pellucid.images.metadata.settings import RecordedSettings, is_json_object, json_object, renamed
from pellucid.images.metadata.texts import xmp_value
from pellucid.images.png import XMP

PROGRAM = "Draw Things"
NAMES = {
    "c": "prompt",
    "uc": "negative_prompt",
    "scale": "guidance",
    "refiner": "refiner",
    "refiner_start": "refiner_at",
    "clip_skip": "clip_skip",
}
IDLE: dict[str, Any] = dict.fromkeys(
    (
        *("v2", "profile", "seed_mode", "size", "hires_fix", "first_stage_size"),
        *("second_stage_strength", "mask_blur", "mask_blur_outset", "crop_left", "crop_top"),
        *("original_size", "target_size", "negative_original_size"),
        *("aesthetic_score", "negative_aesthetic_score", "tiled_decoding", "tiled_diffusion"),
    )
)
IDLE |= {"strength": 1, "shift": 1, "image_guidance": 1.5, "clip_weight": 1}


def _text(texts: Mapping[str, str]) -> str:
    """Its JSON; "" if there is none."""
    named = (xmp_value(texts.get(XMP, ""), "UserComment"), texts.get("UserComment", ""))
    for text in named:
        if is_json_object(text) and {"c", "uc"} <= json_object(text).keys():
            return text
    return ""


def matches(texts: Mapping[str, str]) -> bool:
    return bool(_text(texts))


def read(texts: Mapping[str, str]) -> RecordedSettings:
    values = json_object(_text(texts))
    used = {name: value for name, value in values.items() if name in NAMES or value != 0}
    found = renamed(used, NAMES, IDLE)
    size, first = (_sides(values.get(name)) for name in ("size", "first_stage_size"))
    if size is not None:
        found.fields.update(width=size[0], height=size[1])
    if values.get("hires_fix") and size is not None and first is not None and size > first:
        found.fields.update(width=first[0], height=first[1], hires=size[0] / first[0])
        if "second_stage_strength" in values:
            found.fields["hires_strength"] = values["second_stage_strength"]
    return found


def _sides(size: Any) -> tuple[int, int] | None:
    """Width and height of a size such as "512x768"; None if it is none."""
    sides = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", str(size)[:20])
    return None if sides is None else (int(sides[1]), int(sides[2]))
