"""The text in which A1111 and most other programs store the settings of a picture."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pellucid import samplers
from pellucid.progress import stage

# What A1111 writes for the values of some fields.
WORDS: dict[str, dict[Any, str]] = {
    "decoder": {"vae": "Full", "tiny": "TAESD"},
    "mask_invert": {False: "Inpaint masked", True: "Inpaint not masked"},
    "only_masked": {False: "Whole picture", True: "Only masked"},
    "emphasis": {"original": "Original", "no_norm": "No norm"},
    "spacing": {
        "automatic": "Automatic",
        "uniform": "Uniform",
        "karras": "Karras",
        "exponential": "Exponential",
        "sgm_uniform": "SGM Uniform",
        "kl_optimal": "KL Optimal",
        "align_your_steps": "Align Your Steps",
        "simple": "Simple",
        "ddim": "DDIM",
        "beta": "Beta",
    },
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
    ("Variation seed", "variation_seed", int),
    ("Variation seed strength", "variation_strength", float),
    ("Eta", "eta", float),
    ("Emphasis", "emphasis", _from_words("emphasis")),
    ("Skip Early CFG", "interval", lambda start: (float(start), 1.0)),
)
# Names of other programs for what A1111 does not have.
OTHERS: tuple[tuple[str, str, Callable[[str], Any]], ...] = (
    ("CFG rescale", "rescale", float),  # SD.Next
    ("CFG Rescale phi", "rescale", float),  # reForge
    ("Scheduler", "spacing", str),  # Fooocus, ComfyUI's nodes that write this text
)
OURS = {theirs: (ours, kind) for theirs, ours, kind in (*OTHERS, *PARAMETERS)}
KNOWN = frozenset(OURS) | {"Version", "VAE hash", "Lora hashes", "TI hashes", "Hashes"}
NEGATIVE = "Negative prompt:"
HASHED = 2**20  # bytes of a file at a time
ENOUGH = 3  # known names make a line one of settings
# The length of a name is limited, so that the time that a line takes grows as its length.
PAIR = re.compile(r'(\w[\w \-/]{0,63}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


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
    if not fields.get("variation_strength"):
        fields.pop("variation_strength", None)
        fields.pop("variation_seed", None)
    start, end = fields.pop("interval", (0, 1))
    if start > 0 and end == 1:
        fields["interval"] = start
    for name in ("vae", "refiner"):  # files, whose folder A1111 omits
        if name in fields:
            fields[name] = Path(str(fields[name])).name
    if "sampler" in fields:
        fields["sampler"] = _sampler_label(str(fields["sampler"]))
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
    loras = fields.get("loras", ())
    hashes = {Path(file).stem: _lora_hash(Path(file)) for file, *_ in loras}
    if named := ", ".join(f"{name}: {digits}" for name, digits in hashes.items() if digits):
        pairs.append(("Lora hashes", named))
    lines = [" ".join([str(fields.get("prompt", "")), *(_lora_tag(*lora) for lora in loras)])]
    if fields.get("negative_prompt"):
        lines.append(f"Negative prompt: {fields['negative_prompt']}")
    lines.append(", ".join(f"{name}: {_quote(value)}" for name, value in pairs))
    return "\n".join(lines)


def _sampler_label(name: str) -> str:
    """A sampler's name in A1111."""
    try:
        return samplers.get(samplers.resolve(name)[0]).spec.aliases[0]
    except ValueError:
        return name


def _lora_tag(file: str, weight: float, text_weight: float) -> str:
    """How a prompt puts a LoRA on."""
    if weight == text_weight:
        return f"<lora:{Path(file).stem}:{weight:g}>"
    return f"<lora:{Path(file).stem}:{text_weight:g}:{weight:g}>"


@functools.cache
def _lora_hash(path: Path) -> str | None:
    """A1111's hash of a LoRA, of what follows the header; None if there is no such file."""
    try:
        with path.open("rb") as file:
            if path.suffix == ".safetensors":
                file.seek(8 + int.from_bytes(file.read(8), "little"))
            digest = hashlib.sha256()
            with stage(f"hashing {path.name}", path.stat().st_size) as now:
                while part := file.read(HASHED):
                    digest.update(part)
                    now.done += len(part)
            return digest.hexdigest()[:12]
    except OSError:
        return None


def find_settings(text: str) -> tuple[int, list[tuple[str, str]]] | None:
    """The number of the line that has the settings, and these, quoted as they are; None: no line has.

    It is the last one with ENOUGH known names. What extensions write below it is no prompt.
    """
    lines = text.split("\n")
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].startswith(NEGATIVE):
            break
        found = PAIR.findall(lines[index])
        if len(KNOWN & {name for name, _ in found}) >= ENOUGH:
            return index, found
    return None


def read_parameters(text: str) -> dict[str, Any]:
    """The fields of an A1111 text under Pellucid's names, with width and height as numbers.

    An unknown field keeps its own name and stays a string. Text without settings is a prompt.
    """
    text = re.sub(r"\r\n?", "\n", text).strip("\n")  # of Windows
    lines, found = text.split("\n"), list[tuple[str, str]]()
    if (settings := find_settings(text)) is not None:
        lines, found = lines[: settings[0]], settings[1]
    prompt, negative = lines, list[str]()
    for index, line in enumerate(lines):
        if line.startswith(NEGATIVE):
            prompt = lines[:index]  # a later line may begin so too, and is read as in A1111
            negative = [each.removeprefix(NEGATIVE).removeprefix(" ") for each in lines[index:]]
            break
    fields: dict[str, Any] = {"prompt": "\n".join(prompt), "negative_prompt": "\n".join(negative)}
    for theirs, quoted in found:
        name, kind = OURS.get(theirs, (theirs, str))
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
