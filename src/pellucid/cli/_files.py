"""Where the pictures of a command go, and what they are called."""

from __future__ import annotations

from pathlib import Path


def names_a_file(out: Path, count: int) -> bool:
    """Whether --out names a file; a folder otherwise. ValueError if it can be neither."""
    from pellucid.images.metadata import FORMATS

    is_file = out.suffix.lower() in FORMATS
    if out.suffix and not is_file and not out.is_dir():
        known = ", ".join(FORMATS)
        raise ValueError(f"--out is {out}; a folder or a file that ends in {known} is wanted")
    if is_file and count > 1:
        raise ValueError(f"--out is one file, {out}, and --count is {count}; name a folder")
    folder = out.parent if is_file else out
    if folder.exists() and not folder.is_dir():  # said now, not after the work is done
        raise ValueError(f"--out is {out}, and {folder} is a file; a folder is wanted")
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
