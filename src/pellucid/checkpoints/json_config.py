"""The JSON config files of diffusers and transformers, read key by key.

A value must be of its type and within bounds. What diffusers' networks can vary and ours cannot must
have the value that ours implement. Any other key is refused unless it is empty, because it may mean
that the network is a different one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pellucid.checkpoints.assembly import LARGEST
from pellucid.safetensors_header import CheckpointError

JSON_BYTES = 2**20
# The settings of diffusers' EMAModel, which writes them into the config of the averaged network.
AVERAGING = (
    *("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step"),
    "use_ema_warmup",
)

Value = TypeVar("Value")


class JsonConfig:
    """The JSON object in a file. Errors are CheckpointErrors that name the file and the key."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path, self.values = path, values
        self.known: set[str] = set()

    @classmethod
    def open(cls, path: Path, most: int = JSON_BYTES) -> JsonConfig:
        """Raises CheckpointError if `path` is not a file of at most `most` bytes with a JSON object."""
        if path.exists() and not path.is_file():  # reading a pipe would block
            raise CheckpointError(f"{path} is not a file; expected a config")
        try:
            with path.open("rb") as file:
                text = file.read(most + 1)
            values = json.loads(text) if len(text) <= most else None
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} does not exist") from error
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
        if len(text) > most:
            raise CheckpointError(f"{path} has more than {most} bytes, too many for a config")
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} is not a JSON object")
        return cls(path, values)

    def refused(self, key: str, allowed: str) -> CheckpointError:
        """The error for the value of `key`; allowed: what it must be."""
        return CheckpointError(
            f"{self.path}: {key} is {str(self.values.get(key))[:80]!r}; it must be {allowed}"
        )

    def get(self, key: str, default: Any = None) -> Any:
        """The value; `default` if there is none, or null."""
        self.known.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def whole(self, key: str, default: int, least: int = 1) -> int:
        """A whole number of at least `least`. CheckpointError for anything else, as below."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
            raise self.refused(key, f"a whole number from {least} to {LARGEST}")
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        value = self.get(key, default)
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if not known or abs(value) > LARGEST or not math.isfinite(value):
            raise self.refused(key, "a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.refused(key, "true or false")
        return value

    def word(self, key: str, default: str, meanings: Mapping[str, Value]) -> Value:
        """What the word under `key` means."""
        value = self.get(key, default)
        if not isinstance(value, str) or value not in meanings:
            raise self.refused(key, f"one of {', '.join(filter(None, meanings))}")
        return meanings[value]

    def words(
        self, key: str, default: Sequence[str], meanings: Mapping[str, Value]
    ) -> tuple[Value, ...]:
        """What each word of the list under `key` means."""
        value = self.get(key, list(default))
        if not isinstance(value, list) or not all(isinstance(w, str) for w in value):
            raise self.refused(key, "a list of names")
        if unknown := [word for word in value if word not in meanings]:
            raise CheckpointError(
                f"{self.path}: {key} has {unknown[0][:80]!r}; known are {', '.join(meanings)}"
            )
        return tuple(meanings[word] for word in value)

    def wholes(self, key: str, default: int | Sequence[int], levels: int = 0) -> tuple[int, ...]:
        """A list of numbers, one for each level; a single number is the same at all `levels`."""
        value = self.get(key, default)
        if levels > 0 and isinstance(value, int):
            value = [value] * levels
        numbers = isinstance(value, list | tuple) and all(
            isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= LARGEST
            for side in value
        )
        if not numbers or not value or (levels > 0 and len(value) != levels):
            count = f"{levels} " if levels > 0 else ""
            raise self.refused(key, f"a list of {count}whole numbers from 1 to {LARGEST}")
        return tuple(value)

    def fixed(self, values: Mapping[str, Any]) -> None:
        """Check that these keys, where present, have these values; false, null and 0 are equal."""
        for key, expected in values.items():
            value = self.get(key)
            if key in self.values and value != expected and (value or expected):
                raise self.refused(key, repr(expected))

    def finish(self, idle: Sequence[str] = ()) -> None:
        """Check that no other key is set, except `idle` ones and diffusers' own notes."""
        for key, value in self.values.items():
            note = key.startswith("_") or key in idle or key in self.known
            if not note and value not in (None, False):
                raise CheckpointError(
                    f"{self.path}: {key} is {str(value)[:80]!r}, which is not a known setting"
                )


def class_of(folder: Path) -> str | None:
    """The diffusers class of the network in a folder with a config.json; None if there is none."""
    try:
        name = JsonConfig.open(folder / "config.json").get("_class_name")
    except CheckpointError:
        return None
    return name if isinstance(name, str) else None
