"""What pictures are called: a pattern such as ``{date}/{seed}-{prompt}``, filled in for each one.

A name never leads out of its folder, has only characters that every file system takes, and is short
enough for all of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import PurePosixPath
from string import Formatter
from typing import Any

from pellucid.plugins import choose

DEFAULT = "{prompt}-{seed}"
FIELDS = (
    *("prompt", "seed", "model", "sampler", "spacing", "steps", "guidance"),
    *("width", "height", "date", "time"),
)
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
LONGEST_PROMPT = 60  # characters
LONGEST_FIELD, LONGEST_PART = 150, 200  # bytes; a file system takes 255, and an ending is added
_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f\x7f]')  # of Windows, and control characters
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)")  # of Windows


def checked(pattern: str) -> str:
    """`pattern`, if it is one. ValueError says what is wrong with it."""
    try:
        parts = list(Formatter().parse(pattern))
    except ValueError as error:
        raise ValueError(f"name has a brace without its partner, got {pattern!r}") from error
    for literal, name, spec, conversion in parts:
        if bad := _FORBIDDEN.search(literal):
            raise ValueError(f"name must not have the character {bad[0]!r}, got {pattern!r}")
        if name is not None:
            choose(name, FIELDS, "field of name")
        if spec or conversion:
            raise ValueError(f"name takes fields such as {{{name}}} as they are, got {pattern!r}")
    places = pattern.split("/")
    if any(place.strip(". ") == "" for place in places):
        raise ValueError(
            f"name must be a path below the output folder, without empty, . or .. parts, "
            f"got {pattern!r}"
        )
    if PurePosixPath(pattern).suffix.lower() in PICTURES:
        raise ValueError(f"name must not have an ending, which is added, got {pattern!r}")
    return pattern


def name_for(record: Mapping[str, Any], pattern: str = DEFAULT, now: datetime | None = None) -> str:
    """The path of a picture in its folder, without its ending.

    record: what the picture is stored with. now: the local time, for {date} and {time}.
    """
    now = datetime.now() if now is None else now
    values = {**record, "date": f"{now:%Y-%m-%d}", "time": f"{now:%H-%M-%S}"}
    filled = {name: _safe(name, values.get(name)) for name in FIELDS}
    return "/".join(_part(part.format_map(filled)) for part in pattern.split("/"))


def _safe(name: str, value: Any) -> str:
    """A value as a piece of a file's name."""
    if name == "prompt":
        words = "".join(c if c.isalnum() else " " for c in str(value or "").lower()).split()
        text = "-".join(words)[:LONGEST_PROMPT]
    elif isinstance(value, float):
        text = f"{value:g}"
    else:
        text = re.sub(r"[^\w.+-]+", "-", "" if value is None else str(value))
    short = _cut(text, LONGEST_FIELD).strip("-")
    return short or ("unconditional" if name == "prompt" else "")


def _part(part: str) -> str:
    """One name of a path: no hidden file, none that Windows reserves, not too long."""
    name = _cut(part, LONGEST_PART).strip(" .-_") or "picture"
    name = f"{name}_" if _RESERVED.match(name) else name
    # In a locale that is not UTF-8, Python writes names in another encoding.
    return os.fsdecode(name.encode())


def _cut(text: str, limit: int) -> str:
    return text.encode("utf-8", "ignore")[:limit].decode("utf-8", "ignore")
