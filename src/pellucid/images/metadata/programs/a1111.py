"""A1111's web UI, and the many programs that write the same text (Forge, SD.Next, ...)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pellucid.images.metadata.settings import RecordedSettings, begins_as_json
from pellucid.images.metadata.texts import xmp_value
from pellucid.images.parameters import find_settings, read_parameters
from pellucid.images.png import XMP

PROGRAM = "A1111"

# RecordedSettings that change no picture, or repeat another one.
IDLE = frozenset(
    {
        *("Version", "App", "Backend", "Operations", "Pipeline", "Parser", "User", "Time"),
        *("Model hash", "VAE hash", "Lora hashes", "Hashes", "Init image hash", "Mask hash"),
        *("Pad conds", "Batch size", "Batch pos", "Created Date", "Original Size"),
    }
)
COMMENTS = (
    "Caption",
    "UserComment",
    "comment",
    "Comment",
    "Description",
    "ImageDescription",
    "XPComment",
)
USUAL = {"vae": ("Default (model)", "None", "Automatic"), "sampler": ("Default",)}
"""Values that mean the model's own."""
NEUTRAL = {"RNG": "CPU", "Noise multiplier": "1"}
"""Values that are as everything is drawn here."""


def text_of(texts: Mapping[str, str]) -> str | None:
    """Its text in a picture; a comment counts only if it has settings, for cameras write some too."""
    text = texts.get("parameters")
    if text is not None and not begins_as_json(text):
        other = "prompt" in texts or "workflow" in texts
        if not other or find_settings(text) is not None:
            return text
    for text in _comments(texts):
        if text is not None and find_settings(text) is not None and not begins_as_json(text):
            return text
    return None


def _comments(texts: Mapping[str, str]) -> Iterator[str | None]:
    """The texts in which programs that convert pictures keep the one of A1111."""
    yield from map(texts.get, COMMENTS)
    for name in ("UserComment", "description"):
        yield xmp_value(texts.get(XMP, ""), name)


def matches(texts: Mapping[str, str]) -> bool:
    return text_of(texts) is not None


def read(texts: Mapping[str, str]) -> RecordedSettings:
    text = text_of(texts)
    assert text is not None
    fields = read_parameters(text)
    for name in ("size", "model_hash"):
        fields.pop(name, None)
    for name, usual in USUAL.items():
        if fields.get(name) in usual:
            del fields[name]
    theirs = [name for name in fields if not (name.isidentifier() and name.islower())]
    others = {name: fields.pop(name) for name in theirs}
    unused = (n for n, value in others.items() if n not in IDLE and NEUTRAL.get(n) != value)
    return RecordedSettings(fields, tuple(unused))
