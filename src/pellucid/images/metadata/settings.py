"""What another program wrote down about a picture, under the names of a request."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

MAX_DEPTH = 100  # of lists and objects in each other; more is no settings, and costs recursion

SAME = frozenset(
    {
        *("prompt", "negative_prompt", "seed", "steps", "width", "height", "sampler", "strength"),
        *("model", "vae"),
    }
)
"""Names of a request that other programs have too."""


class RecordedSettings(NamedTuple):
    """What a program recorded."""

    fields: dict[str, Any]
    """Under the names of a request; "model", "vae" and "refiner" are names and no files."""
    unused: tuple[str, ...] = ()
    """Settings that a request does not have, by their own names."""
    program: str = ""
    problem: str | None = None
    """Why nothing can be read; `fields` is empty then."""


def parse_json(text: str) -> Any:
    """The value of a JSON text. ValueError: no JSON, or nested more than MAX_DEPTH deep."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"the JSON is nested more than {MAX_DEPTH} deep") from None
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for some in inner for each in some if isinstance(each, dict | list)]
        if not level:
            return _whole(value) if "\\ud" in text.lower() else value
    raise ValueError(f"the JSON is nested more than {MAX_DEPTH} deep")


def _whole(value: Any) -> Any:
    """The value without halves of letters, which can be neither printed nor written."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def json_object(text: str) -> dict[str, Any]:
    """The fields of a JSON object. ValueError for anything else."""
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError("the JSON is not an object")
    return value


def begins_as_json(text: str) -> bool:
    """Whether a text begins as a JSON object or a list of them. A prompt can begin with {red|blue}."""
    return re.match(r'\s*(\[\s*)?\{\s*"', text) is not None


def is_json_object(text: str) -> bool:
    """Whether a text is a JSON object that can be read."""
    try:
        return text.lstrip().startswith("{") and bool(json_object(text))
    except ValueError:
        return False


def renamed(
    values: Mapping[str, Any], names: Mapping[str, str], idle: Mapping[str, Any]
) -> RecordedSettings:
    """Settings under the names of a request.

    names: their name -> a request's, where these differ from `SAME`. idle: name -> the value that
    changes no picture; None: with any value. Empty ones are left out too.
    """
    fields, unused = dict[str, Any](), list[str]()
    for name, value in values.items():
        if value is None or value is False or value in ("", [], {}):
            continue
        if name in idle and idle[name] in (None, value):
            continue
        ours = names.get(name, name if name in SAME else None)
        if ours is None:
            unused.append(name)
        else:
            fields[ours] = value
    return RecordedSettings(fields, tuple(unused))
