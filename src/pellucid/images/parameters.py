"""The text in which A1111 and most other programs store the settings of a picture."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# What A1111 writes for the values of some fields.
WORDS: dict[str, dict[Any, str]] = {
    "decoder": {"vae": "Full", "tiny": "TAESD"},
    "mask_invert": {False: "Inpaint masked", True: "Inpaint not masked"},
    "only_masked": {False: "Whole picture", True: "Only masked"},
    "inpaint_fill": {
        "fill": "fill",
        "original": "original",
        "noise": "latent noise",
        "blank": "latent nothing",
    },
}


def _from_words(field: str) -> Callable[[str], Any]:
    return {words: value for value, words in WORDS[field].items()}.__getitem__


# The names of the A1111 text in its order, and Pellucid's names for the same things.
PARAMETERS: tuple[tuple[str, str, Callable[[str], Any]], ...] = (
    ("Steps", "steps", int),
    ("Sampler", "sampler", str),
    ("Schedule type", "spacing", str),
    ("CFG scale", "guidance", float),
    ("Seed", "seed", int),
    ("Size", "size", str),
    ("Model hash", "model_hash", str),
    ("Model", "model", str),
    ("VAE", "vae", str),
    ("VAE Decoder", "decoder", _from_words("decoder")),
    ("Clip skip", "clip_skip", int),
    ("Denoising strength", "strength", float),
    ("Mask blur", "mask_blur", int),
    ("Mask mode", "mask_invert", _from_words("mask_invert")),
    ("Masked content", "inpaint_fill", _from_words("inpaint_fill")),
    ("Inpaint area", "only_masked", _from_words("only_masked")),
    ("Masked area padding", "padding", int),
    ("Hires upscale", "hires", float),
    ("Hires steps", "hires_steps", int),
    ("Hires upscaler", "hires_upscaler", str),
    ("Refiner", "refiner", str),
    ("Refiner switch at", "refiner_at", float),
)


def write_parameters(request: Mapping[str, Any]) -> str:
    """A request as the text that other programs read (A1111's `parameters`).

    Known fields take A1111's names and order; other plain values follow under their own names;
    None, lists and objects are left out (the JSON has them). "Denoising strength" is that of the
    second pass if there is no starting picture, as in A1111.
    """
    known = {ours for _, ours, _ in PARAMETERS}
    fields = {name: value for name, value in request.items() if value is not None}
    if "width" in fields and "height" in fields:
        fields["size"] = f"{fields['width']}x{fields['height']}"
    if "hires" in fields and "strength" not in fields and "hires_strength" in fields:
        fields["strength"] = fields.pop("hires_strength")
    for name in ("vae", "refiner"):  # files, whose folder A1111 omits
        if name in fields:
            fields[name] = Path(str(fields[name])).name
    fields |= {
        name: WORDS[name].get(fields[name], fields[name]) for name in WORDS if name in fields
    }
    pairs = [(theirs, fields[ours]) for theirs, ours, _ in PARAMETERS if ours in fields]
    special = {"prompt", "negative_prompt", "width", "height"}
    pairs += [
        (name, value)
        for name, value in fields.items()
        if name not in known | special and isinstance(value, str | int | float)
    ]
    lines = [str(fields.get("prompt", ""))]
    if fields.get("negative_prompt"):
        lines.append(f"Negative prompt: {fields['negative_prompt']}")
    lines.append(", ".join(f"{name}: {_quote(value)}" for name, value in pairs))
    return "\n".join(lines)


def read_parameters(text: str) -> dict[str, Any]:
    """The fields of an A1111 text under Pellucid's names, with width and height as numbers.

    An unknown field keeps its own name and stays a string. Text without any fields is a prompt.
    """
    lines = text.strip("\n").split("\n")
    found = re.findall(r'\s*(\w[\w \-/]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)', lines[-1])
    names = {theirs for theirs, _, _ in PARAMETERS}
    if any(name in names for name, _ in found) and not lines[-1].startswith("Negative prompt:"):
        lines.pop()
    else:
        found = []
    prompt, negative = lines, list[str]()
    for index, line in enumerate(lines):
        if line.startswith("Negative prompt:"):
            prompt, negative = lines[:index], lines[index:]
            negative[0] = negative[0].removeprefix("Negative prompt:").removeprefix(" ")
            break
    fields: dict[str, Any] = {"prompt": "\n".join(prompt), "negative_prompt": "\n".join(negative)}
    ours = {theirs: (name, kind) for theirs, name, kind in PARAMETERS}
    for theirs, quoted in found:
        name, kind = ours.get(theirs, (theirs, str))
        value = _unquote(quoted.strip())
        try:
            fields[name] = kind(value)
        except (ValueError, KeyError):
            fields[name] = value
    if match := re.fullmatch(r"(\d+)x(\d+)", str(fields.get("size", ""))):
        del fields["size"]
        fields["width"], fields["height"] = int(match[1]), int(match[2])
    if "hires" in fields and "strength" in fields and "hires_strength" not in fields:
        fields["hires_strength"] = fields.pop("strength")
    return fields


def _quote(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def _unquote(text: str) -> str:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        return text
