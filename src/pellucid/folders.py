"""Finding models, LoRAs and other files of weights by name, in the folders where people keep them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pellucid.plugins import nearest

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
DIFFUSERS = "model_index.json"  # marks a folder that is one model
PICTURES = (".png", ".webp")  # an embedding can be in one
SHOWN = 8  # names that a message lists


def is_preview(picture: Path) -> bool:
    """Whether a picture shows what the weights beside it do: x.png or x.preview.png beside x.pt."""
    stem = picture.stem.removesuffix(".preview")
    return any(picture.with_name(stem + ending).exists() for ending in WEIGHTS)


@dataclass(frozen=True)
class Folder:
    """A folder of files of one kind, and the folders below it.

    kind: what its files are called in messages, such as "LoRA". is_one: whether a picture in it is one
    of its files; the pictures of most folders only show what a file next to them is.
    """

    path: Path
    kind: str
    is_one: Callable[[Path], bool] | None = None

    def files(self) -> list[Path]:
        """Files of weights and diffusers' folders, sorted. Hidden folders are left out."""
        found: list[Path] = []
        seen: set[str] = set()
        for place, folders, names in os.walk(self.path, followlinks=True):
            here, real = Path(place), os.path.realpath(place)
            if real in seen:  # a link that leads back
                folders.clear()
                continue
            seen.add(real)
            if DIFFUSERS in names and here != self.path:
                found.append(here)
                folders.clear()
                continue
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [here / name for name in names if self._counts(here / name)]
        return sorted(path for path in found if path.exists())

    def _counts(self, path: Path) -> bool:
        ending = path.suffix.lower()
        if ending in WEIGHTS or self.is_one is None or ending not in PICTURES:
            return ending in WEIGHTS
        return not is_preview(path) and self.is_one(path)

    def names(self) -> list[str]:
        """How each file can be named: without its ending; with its folder where names repeat."""
        files = self.files()
        stems = [name_of(path) for path in files]
        return [
            stem if stems.count(stem) == 1 else self._inside(path)
            for path, stem in zip(files, stems, strict=True)
        ]

    def find(self, name: str, complete: bool = False) -> Path:
        """The file with this name, or with this end of its path, with its ending or without it.

        "\\" is "/". complete: the beginning of a name is enough, in any case of letters, if only one
        file has it. Raises ValueError that lists the nearest names, or the files that share the name.
        """
        if not self.path.is_dir():
            raise ValueError(
                f"{self.path} is not a folder; expected one with {self.kind}s, such as {name!r}"
            )
        files = self.files()
        if not files:
            raise ValueError(f"{self.path} has no {self.kind} in it, such as {name!r}")
        end = "/" + name.replace("\\", "/")
        tests = [
            lambda path: end in self._ends(path),  # it may be the end of another one too
            lambda path: any(each.endswith(end) for each in self._ends(path)),
        ]
        if complete:
            low = name.replace("\\", "/").lower()
            tests += [
                lambda path: name_of(path).lower() == low,
                lambda path: low != "" and name_of(path).lower().startswith(low),
                lambda path: low != "" and self._inside(path).lower().startswith(low),
            ]
        for test in tests:
            found = [path for path in files if test(path)]
            if len(found) == 1:
                return found[0]
            if found:
                raise ValueError(
                    f"there are {len(found)} {self.kind}s named {name!r} in {self.path}: "
                    f"{_listed([path.relative_to(self.path).as_posix() for path in found])}"
                )
        near = nearest(name, dict.fromkeys(map(name_of, files)))
        raise ValueError(
            f"unknown {self.kind} in {self.path} named {name!r}; choices, nearest first: "
            f"{_listed(near)}"
        )

    def _inside(self, path: Path) -> str:
        return path.relative_to(self.path).with_name(name_of(path)).as_posix()

    def _ends(self, path: Path) -> tuple[str, str]:
        return f"/{path.relative_to(self.path).as_posix()}", f"/{self._inside(path)}"


def name_of(path: Path) -> str:
    """A file's name without the ending of weights or of a picture; a folder's name."""
    return path.stem if path.suffix.lower() in (*WEIGHTS, *PICTURES) else path.name


def embedded() -> Path:
    """The path of the included model."""
    return Path(__file__).parent / "weights" / "emoji.safetensors"


def _listed(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
