"""Where the pictures of a command go, and what they are called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pellucid.model import Model
    from pellucid.pipeline import Progress

SMALL = 256  # pictures of at most this many pixels on a side are shown twice as large in a film


def names_a_file(out: Path, count: int) -> bool:
    """Whether --out names a file; a folder otherwise. ValueError if it can be neither."""
    from pellucid.images.metadata import FORMATS

    is_file = out.suffix.lower() in FORMATS
    if out.suffix and not is_file and not out.is_dir():
        raise ValueError(
            f"--out must be a folder or a file that ends in {', '.join(FORMATS)}, got {out}"
        )
    if is_file and count > 1:
        raise ValueError(f"--out must be a folder if --count is {count}, got the file {out}")
    folder = out.parent if is_file else out
    if folder.exists() and not folder.is_dir():  # checked before the work
        raise ValueError(f"--out is {out}, but {folder} is a file and not a folder")
    return is_file


def free_name(folder: Path, stem: str, suffix: str = ".png") -> Path:
    """A name that is not taken."""
    path, number = folder / f"{stem}{suffix}", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}{suffix}", number + 1
    return path


def stem_of(prompt: str, seed: int) -> str:
    """A picture's name without its ending: the first words of its prompt, and its seed."""
    words = "-".join("".join(c if c.isalnum() else " " for c in prompt.lower()).split())
    short = words[:60].encode()[:150].decode(errors="ignore")  # a file name has at most 255 bytes
    return f"{short.strip('-') or 'unconditional'}-{seed}"


def write_film(
    model: Model, steps: Sequence[Progress], i: int, target: Path, preview: str
) -> dict[str, str]:
    """Writes the steps of picture i as a strip and as a film, next to `target`; their paths."""
    from pellucid.images.film import film_strip, save_film
    from pellucid.images.metadata import save_image
    from pellucid.preview import preview as previewed

    noisy = [previewed(model, step.x[i : i + 1], preview)[0] for step in steps]
    clean = [previewed(model, step.x0[i : i + 1], preview)[0] for step in steps]
    size = noisy[-1].size  # a second pass is larger than the first
    noisy, clean = ([frame.resize(size, 0) for frame in frames] for frames in (noisy, clean))
    strip, film = target.with_name(target.stem + "-strip.png"), target.with_suffix(".webp")
    if film == target:
        film = target.with_name(target.stem + "-film.webp")
    save_image(film_strip(noisy, clean), strip)
    save_film(noisy, clean, film, scale=2 if max(size) <= SMALL else 1)
    return {"strip": str(strip), "film": str(film)}
