"""The paths of files in a picture's record: written so that they can be shared, and found again.

A relative path is recorded as it was given, and one in the home folder begins with ~, so that a picture
that is passed on does not contain the name of its user. A recorded path is looked up as it is, then
next to the picture and in the folders above it, then by its name in the folder of the settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pellucid.request import Request
from pellucid.request.fields import PICTURES, file_fields, with_files
from pellucid.settings import load_settings

KINDS: dict[str, str | None] = {
    "model_file": "models",
    "vae": "vaes",
    "tiny_vae": "vaes",
    "lora_folder": None,
    **{name: None if kind == PICTURES else kind for name, kind in file_fields(Request).items()},
}
"""What of a record are paths, and the folder of the settings for each."""


def shareable(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record whose paths do not contain the home folder."""
    return _changed(record, lambda kind, path: _without_home(path))


def found_again(picture: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the paths of what exists here. A file that is nowhere keeps its recorded path."""

    def find(kind: str | None, path: str) -> str:
        return next((str(place) for place in _places(picture, path, kind) if place.exists()), path)

    return _changed(record, find)


def searched(picture: Path, path: str) -> str:
    """Where `found_again` looks for a file, in words."""
    near = "" if Path(path).is_absolute() else f", in {picture.parent} and the folders above it"
    return f"looked for it as {path}{near}, and in the folders of your settings"


def _without_home(path: str) -> str:
    with suppress(ValueError, RuntimeError):  # elsewhere; no home
        return str("~" / Path(path).relative_to(Path.home()))
    return path


def _places(picture: Path, path: str, kind: str | None) -> Iterator[Path]:
    given = Path(path)
    with suppress(RuntimeError):  # there is no such user
        given = given.expanduser()
    yield given
    if not given.is_absolute():
        yield from (folder / given for folder in picture.absolute().parents)
    if kind is not None:
        with suppress(ValueError):  # it is not there either, or several are
            yield load_settings().settings.folder(kind).find(given.name)


def _changed(record: Mapping[str, Any], change: Callable[[str | None, str], str]) -> dict[str, Any]:
    """The record with other paths. What has another form than a path stays as it is."""
    changed = dict(record)
    for name, kind in KINDS.items():
        value = record.get(name)
        if name == "hires_upscaler" and not Path(str(value)).suffix:
            continue  # the name of a method and no file
        if name in record:
            changed[name] = with_files(value, partial(change, kind))
    return changed
