"""NovelAI: a JSON object under "Comment", its model under "Source"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.images.metadata.settings import RecordedSettings, is_json_object, json_object, renamed

PROGRAM = "NovelAI"
NAMES = {
    "scale": "guidance",
    "uc": "negative_prompt",
    "noise_schedule": "spacing",
    "cfg_rescale": "rescale",
}
IDLE: dict[str, Any] = dict.fromkeys(
    (
        *("n_samples", "request_type", "signed_hash", "version", "extra_noise_seed", "legacy"),
        *("legacy_v3_extend", "stream", "params_version", "v4_prompt", "v4_negative_prompt"),
        *("add_original_image", "extra_passthrough_testing", "hide_debug_overlay"),
    )
)
IDLE |= {"uncond_scale": 1.0, "noise_schedule": "native", "controlnet_strength": 1.0, "noise": 0}
IDLE |= {"dynamic_thresholding_percentile": 0.999, "dynamic_thresholding_mimic_scale": 10.0}


def _parts(texts: Mapping[str, str]) -> Mapping[str, str]:
    """In a WebP all texts are together in one comment, as JSON."""
    comment = texts.get("UserComment", "")
    if "NovelAI" in comment and is_json_object(comment):
        return {name: text for name, text in json_object(comment).items() if isinstance(text, str)}
    return texts


def matches(texts: Mapping[str, str]) -> bool:
    return _parts(texts).get("Software") == "NovelAI"


def read(texts: Mapping[str, str]) -> RecordedSettings:
    parts = _parts(texts)
    values = json_object(parts.get("Comment", ""))
    values = {"prompt": parts.get("Description"), **values, "model": parts.get("Source")}
    found = renamed(values, NAMES, IDLE)
    prompt = values.get("v4_prompt")
    caption = prompt.get("caption") if isinstance(prompt, dict) else None
    if isinstance(caption, dict) and caption.get("char_captions"):
        return found._replace(unused=(*found.unused, "char_captions"))
    return found
