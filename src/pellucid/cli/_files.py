"""Where the results of a command go, and what they are called.

One rule for all commands: into the folder `outputs`, or that of the user's settings, or where --out
says, which is a folder or a file. In a folder a file is named after what it shows, and a name that is
taken gets a number. A file that exists is replaced only with --overwrite.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pellucid.cli._app import report
from pellucid.files import check_room, check_writable, save_new
from pellucid.output_names import DEFAULT, checked, name_for
from pellucid.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from PIL.Image import Image

    from pellucid.model import Model
    from pellucid.pipeline import Progress

SMALL = 256  # pictures of at most this many pixels on a side are shown twice as large in a film
OUTPUTS = "outputs"  # the folder of the results if there is no --out
OVERWRITE = "Replace the file of --out if it exists."
BYTES = {".png": 1.0}  # that a pixel takes at least in a photo; 0.1 in other formats
# Endings that a folder of results must not have.
OTHERS = (".html", ".htm", ".pdf", ".json", ".txt", ".md", ".svg")
PAGES = (".html", ".htm")  # what the file of a page ends in


@dataclass
class Output:
    """Where the files of a command go: into a folder, or to the one name that --out gives."""

    folder: Path
    file: Path | None = None
    name: str = DEFAULT
    """The pattern of names in the folder."""
    overwrite: bool = False
    failed: bool = False
    """Whether a file could not be written where it was asked for."""

    @classmethod
    def of(
        cls,
        out: str | None,
        count: int = 1,
        overwrite: bool = False,
        film: bool = False,
        name: str | None = None,
    ) -> Self:
        """What --out and --name say of pictures, checked before the work; None: as the settings say.

        ValueError: nothing can be written there, or it is no pattern.
        """
        from pellucid.images.metadata import FORMATS

        pattern = load_settings().settings.name if name is None else checked(name)
        output = cls._of(out, tuple(FORMATS), count, overwrite, film)
        if output.file is not None and name is not None:
            raise ValueError(f"--name is for a folder, and --out names the file {out}")
        output.name = pattern
        return output

    @classmethod
    def of_page(cls, out: str | None, overwrite: bool = False) -> Self:
        """What --out says of a page; as `of`."""
        return cls._of(out, PAGES, 1, overwrite, False)

    @classmethod
    def _of(
        cls, out: str | None, endings: tuple[str, ...], count: int, overwrite: bool, film: bool
    ) -> Self:
        out = str(load_settings().settings.outputs) + os.sep if out is None else out
        if not out.strip():
            raise ValueError("--out must not be empty")
        if out == "-":
            raise ValueError(
                "--out must be a file or a folder, got - (./- is a folder of that name)"
            )
        path = Path(out)
        if not _names_a_file(out, endings):
            check_writable(path, folder=True)
            if overwrite:
                report(
                    "--overwrite does nothing for a folder, where a name that is taken gets a number"
                )
            return cls(path)
        if count > 1:
            raise ValueError(f"--out must be a folder for {count} pictures, got the file {out}")
        for name in (path, *(_names_of_film(path) if film else ())):
            check_writable(name)
            if os.path.lexists(name) and not overwrite:
                raise ValueError(f"{name} exists; --overwrite replaces it")
        return cls(path.parent, path, overwrite=overwrite)

    def stem(self, record: Mapping[str, Any]) -> str:
        """The name of a picture with this record, without its ending."""
        return name_for(record, self.name)

    def check_room(self, count: int, pixels: int) -> None:
        """ValueError if so many pictures of so many pixels would not fit on the disk."""
        path = self.folder if self.file is None else self.file
        suffix = ".png" if self.file is None else path.suffix.lower()
        needed = count * round(pixels * BYTES.get(suffix, 0.1))
        check_room(path, needed, folder=self.file is None)

    def save_picture(
        self,
        image: Image,
        record: Mapping[str, Any] | None,
        stem: str,
        texts: Mapping[str, str] | None = None,
    ) -> Path:
        """Write a picture with its record, named `stem` unless --out names a file; its path.

        texts: as in `save_image`.
        """
        from pellucid.images.metadata import save_image

        path = self.folder / f"{stem}.png" if self.file is None else self.file
        return self.save(partial(save_image, image, request=record, texts=texts), path)

    def save_page(self, text: str, stem: str) -> Path:
        """Write a page, named `stem` unless --out names a file; its path."""
        from pellucid.html import pages

        path = self.folder / f"{stem}.html" if self.file is None else self.file
        return self.save(partial(pages.write, text=text), path)

    def save(self, save: Callable[..., None], path: Path, ending: str | None = None) -> Path:
        """Write a file by `save(path, replace=...)`; its path, with a number if the name is taken.

        What cannot be written there is kept in the system's temporary folder, and a message says so.
        ending: as in `save_new`. ValueError if that fails too.
        """
        save_it = partial(save, replace=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.file is not None and self.overwrite:
                save(path, replace=True)
                return path
            return save_new(save_it, path, ending)
        except (OSError, ValueError) as error:
            said = error if isinstance(error, ValueError) else f"{path}: {error.strerror}"
            try:
                kept = save_new(save_it, Path(tempfile.gettempdir(), path.name), ending)
            except (OSError, ValueError):
                raise ValueError(str(said)) from error
            self.failed = True
            report(f"{said}; it is kept in {kept}")
            return kept


def _names_a_file(out: str, endings: tuple[str, ...]) -> bool:
    """Whether --out names a file; a folder otherwise. ValueError for the ending of another format."""
    from PIL import Image

    suffix = Path(out).suffix.lower()
    if out.endswith(("/", os.sep)) or Path(out).is_dir():
        return False
    others = (*OTHERS, *Image.registered_extensions())
    near = difflib.get_close_matches(suffix, endings)
    if suffix not in endings and (suffix in others or near):
        raise ValueError(
            f"--out must be a folder or a file that ends in {', '.join(endings)}, got {out}"
        )
    return suffix in endings


def check_out(out: Path, folder: bool = True, option: str = "--out") -> None:
    """Check, before the work, where a command writes that names its files itself: into the folder
    `out`, or the one file. ValueError that names the option."""
    page = out.suffix.lower() in PAGES
    if out.is_dir() != folder and (page or os.path.lexists(out)):
        raise ValueError(f"{option} must be a {'folder' if folder else 'file'}, got {out}")
    check_writable(out, folder=folder)


def save_film(
    output: Output, model: Model, steps: Sequence[Progress], i: int, target: Path, preview: str
) -> dict[str, str]:
    """Writes the steps of picture i as a strip and as a film, next to `target`; their paths."""
    from pellucid.images import film
    from pellucid.images.metadata import save_image
    from pellucid.preview import preview as previewed

    noisy = [previewed(model, step.x[i : i + 1], preview)[0] for step in steps]
    clean = [previewed(model, step.x0[i : i + 1], preview)[0] for step in steps]
    images = steps[-1].images
    if model.second_stage is not None and images is not None:
        noisy, clean = [*noisy, images[i]], [*clean, images[i]]
    size = noisy[-1].size  # a second pass is larger than the first
    noisy, clean = ([frame.resize(size, 0) for frame in frames] for frames in (noisy, clean))
    scale = 2 if max(size) <= SMALL else 1
    save_strip = partial(save_image, film.film_strip(noisy, clean))
    save_frames = partial(film.save_film, noisy, clean, scale=scale)
    names = _names_of_film(target)
    strip, frames = map(output.save, (save_strip, save_frames), names)
    return {"strip": str(strip), "film": str(frames)}


def _names_of_film(target: Path) -> tuple[Path, Path]:
    """The strip and the film of a picture."""
    film = target.with_suffix(".webp")
    if film == target:
        film = target.with_name(target.stem + "-film.webp")
    return target.with_name(target.stem + "-strip.png"), film
