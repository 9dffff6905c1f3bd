"""Mochi Diffusion: `Key: value` pairs as the caption of the IPTC, which is also the XMP's description.

Version 1 puts "; " between them, which prompts may have too; version 2 puts each on a line of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pellucid.images.metadata.settings import RecordedSettings, renamed
from pellucid.images.metadata.texts import xmp_value
from pellucid.images.png import XMP

PROGRAM = "Mochi Diffusion"
NAMES = {
    "Include in Image": "prompt",
    "Exclude from Image": "negative_prompt",
    "Guidance Scale": "guidance",
    "Steps": "steps",
    "Seed": "seed",
    "Model": "model",
    "Scheduler": "sampler",
}
IDLE: dict[str, Any] = dict.fromkeys(
    ("Date", "Size", "ML Compute Unit", "Generator", "Engine", "Model Key", "Metadata Version")
)
SAMPLERS = {"DPM-Solver++": "dpmpp_2m", "PNDM": "plms"}
KEYS = (*NAMES, *IDLE, "Upscaler", "Input Images")
FIRST = "Include in Image:"
BETWEEN = re.compile(f"; (?=(?:{'|'.join(KEYS)}):)")
ESCAPED = {r"\n": "\n", r"\r": "\r", r"\\": "\\"}


def _text(texts: Mapping[str, str]) -> str:
    named = (texts.get(key, "") for key in ("Caption", "Description", "ImageDescription"))
    for text in (*named, xmp_value(texts.get(XMP, ""), "description")):
        if FIRST in text and "Seed:" in text:
            return text
    return ""


def matches(texts: Mapping[str, str]) -> bool:
    return bool(_text(texts))


def read(texts: Mapping[str, str]) -> RecordedSettings:
    text = _text(texts)
    second = text.startswith("Metadata Version:")
    values: dict[str, str] = {}
    for pair in re.split(r"\r?\n", text) if second else BETWEEN.split(text):
        key, _, value = pair.partition(":")
        value = value.removeprefix(" ")
        if second:
            value = re.sub(r"\\[nr\\]", lambda found: ESCAPED[found[0]], value)
        values.setdefault(key, value)
    found = renamed(values, NAMES, IDLE)
    sampler = found.fields.get("sampler")
    if sampler is not None:
        found.fields["sampler"] = SAMPLERS.get(sampler, sampler)
    if size := re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", values.get("Size", "")[:20]):
        found.fields.update(width=int(size[1]), height=int(size[2]))
    return found
