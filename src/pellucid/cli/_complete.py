"""What a shell completes: the names of files and of choices. Torch is imported only for choices that are
in a module that needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pellucid.request import Request
from pellucid.request.fields import PICTURES, choices_of, file_fields
from pellucid.settings import load_settings

Complete = Callable[[str], list[str]]
"""The words that begin as typed."""

SHIPPED = "emoji"  # how --model names the included model, where another one is the default


def completion_of(names: Callable[[], Iterable[str]]) -> Complete:
    """A list of names, which is made when it is needed."""
    return lambda incomplete: _beginning(incomplete, names())


def names_in(folder: str) -> Complete:
    """The names in a folder of the settings."""

    def names() -> list[str]:
        try:
            found = load_settings().settings.folder(folder).names()
        except ValueError:  # a command says what is wrong with the settings
            return []
        return found + ([SHIPPED] if folder == "models" else [])

    return lambda incomplete: _beginning(incomplete, names())


def values_of(request: type[Request], field: str) -> Complete | None:
    """The values of a field of a request: its choices, and the files that it may name; None: it takes
    any."""
    folder = file_fields(request).get(field, PICTURES)
    choices = choices_of(request, field)
    files = None if folder == PICTURES else names_in(folder)

    def words(incomplete: str) -> list[str]:
        listed = _beginning(incomplete, () if choices is None else choices())
        return listed + ([] if files is None else files(incomplete))

    return None if choices is None and files is None else words


def _beginning(begun: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.lower().startswith(begun.lower())]
