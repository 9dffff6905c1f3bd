"""Config dataclasses in the metadata of Pellucid's own files."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any, TypeVar

from pellucid.checkpoints.header import CheckpointError

Config = TypeVar("Config")


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
