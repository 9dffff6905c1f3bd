"""A plug-in is a file: its stem is its public name. This is the only discovery code."""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType


class Plugins(Mapping[str, ModuleType]):
    """The modules of a package by file stem. A module is imported when it is first used."""

    def __init__(self, package: str) -> None:
        self.package = package
        loaded = sys.modules.get(package)
        if loaded is None:  # their names do not need torch, which importing the package may need
            root, *inside = package.split(".")
            folders = [
                str(Path(place, *inside)) for place in importlib.import_module(root).__path__
            ]
        else:
            folders = list(loaded.__path__)
        self.names = _stems(tuple((folder, _changed(folder)) for folder in folders))

    def __getitem__(self, name: str) -> ModuleType:
        if name not in self.names:
            raise KeyError(name)
        return importlib.import_module(f"{self.package}.{name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@lru_cache(maxsize=64)
def _stems(folders: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    """The public modules in folders, each with the time of its last change: they are listed anew only
    after one."""
    found = (module.name for module in pkgutil.iter_modules([folder for folder, _ in folders]))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def _changed(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:  # in an archive
        return 0


def discover(package: str) -> Plugins:
    """Every module in `package` ("pellucid.samplers") whose name does not start with "_"."""
    return Plugins(package)


def nearest(name: str, choices: Iterable[str]) -> list[str]:
    """`choices`, those most similar to `name` first."""

    def likeness(choice: str) -> float:
        return difflib.SequenceMatcher(None, name.lower(), choice.lower()).ratio()

    return sorted(choices, key=likeness, reverse=True)


def choose(name: str, choices: Iterable[str], what: str) -> str:
    """`name`, if it is one of `choices`; else ValueError, which lists them, the nearest first."""
    choices = list(choices)
    if name in choices:
        return name
    raise unknown(name, nearest(str(name), choices), what)


def unknown(name: str, near: Iterable[str], what: str) -> ValueError:
    """The error for a name that is none of the choices, which are given nearest first."""
    known = ", ".join(near)
    return ValueError(f"unknown {what} {name!r}; choices, nearest first: {known}")
