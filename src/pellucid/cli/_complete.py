"""What a shell completes: the names of models, LoRAs and samplers. Torch is not imported for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args, get_origin

from pellucid.plugins import discover
from pellucid.request import PICTURES, Request, file_fields
from pellucid.settings import load_settings

Complete = Callable[[str], list[str]]
"""The words that begin as typed."""

SHIPPED = "emoji"  # how --model names the model that ships, where another one is the default


def names_in(folder: str) -> Complete:
    """The names in a folder of the settings."""

    def names() -> list[str]:
        try:
            found = load_settings().settings.folder(folder).names()
        except ValueError:  # a command says what is wrong with the settings
            return []
        return found + ([SHIPPED] if folder == "models" else [])

    return lambda incomplete: _beginning(incomplete, names())


def values_of(field: str, kind: Any) -> Complete | None:
    """The values of a field of a request with this type; None: it takes any."""
    folder = file_fields(Request).get(field, PICTURES)
    if folder != PICTURES:
        return names_in(folder)
    if field == "sampler":
        return lambda incomplete: _beginning(incomplete, discover("pellucid.samplers"))
    if get_origin(kind) is Literal:
        return lambda incomplete: _beginning(incomplete, get_args(kind))
    return None


def _beginning(begun: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.lower().startswith(begun.lower())]
