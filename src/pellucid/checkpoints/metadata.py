"""The JSON metadata of Pellucid's own files, and the config dataclasses in it."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from pellucid.checkpoints.weights import CheckpointSource
from pellucid.safetensors_header import CheckpointError

Config = TypeVar("Config")


def json_entry(
    source: CheckpointSource, entry: str, version: int, required: Collection[str]
) -> dict[str, Any]:
    """The JSON object under `entry` in a file's metadata, which has at least the `required` fields.

    Raises CheckpointError: not JSON, fields that are missing, a version above `version`.
    """
    path = source.path
    try:
        facts = json.loads(source.weights.metadata[entry])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its {entry!r} metadata is not JSON") from error
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path}: its {entry!r} metadata is not a JSON object")
    found = facts.get("version")
    if not isinstance(found, int):
        raise CheckpointError(
            f"{path}: its {entry!r} metadata has no format version; expected {version}"
        )
    if found > version:
        raise CheckpointError(
            f"{path} has format version {found}; this Pellucid reads up to {version}, a newer "
            "Pellucid is needed"
        )
    if missing := sorted(set(required) - facts.keys()):
        raise CheckpointError(f"{path}: its {entry!r} metadata has no {', '.join(missing)}")
    return facts


def dataclass_from(path: Path, what: str, kind: type[Config], values: Any) -> Config:
    """A config dataclass from JSON, in which tuples have become lists."""
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: the {what} in its metadata is not a JSON object")
    known = {field.name for field in dataclasses.fields(typing.cast(Any, kind))}
    if unknown := sorted(values.keys() - known):
        raise CheckpointError(
            f"{path}: the {what} in its metadata has an unknown field {unknown[0]!r}; known are "
            f"{', '.join(sorted(known))}"
        )
    try:
        return kind(**{name: _tuples(value) for name, value in values.items()})
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: the {what} in its metadata is wrong: {error}") from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
