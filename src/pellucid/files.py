"""Writing files and folders whole or not at all.

What is written gets a temporary name in the same folder, because only there is a rename one step,
and takes its final name when it is complete. A crash, a kill or a full disk never leaves half a
file, and an older file of the same name stays until the new one is ready.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def new_file(
    path: str | Path, error: type[ValueError] = ValueError, make_folder: bool = False
) -> Iterator[Path]:
    """A temporary path to write to, which replaces `path` at the end of the block.

    It is removed if the block raises. make_folder: create the folder of `path` if it is missing.
    Raises `error`, which names `path`, if the folder does not exist or the disk refuses to write.
    The file has the mode that `open` gives to a new one.
    """
    path = Path(path)
    with _writing(path, error, make_folder):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        temporary.touch(exist_ok=False)  # the name is taken from here on
        mode = temporary.stat().st_mode
        try:
            yield temporary
            temporary.chmod(mode)  # safetensors makes files that only their owner can read
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path, error: type[ValueError] = ValueError) -> Iterator[Path]:
    """A temporary folder to write into, which replaces the folder `path` at the end of the block.

    Removed and refused as in `new_file`.
    """
    path = Path(path)
    with (
        _writing(path, error),
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary,
    ):
        made, old = Path(temporary) / "new", Path(temporary) / "old"
        made.mkdir()
        yield made
        if path.is_dir() and not path.is_symlink():
            path.rename(old)  # and is removed with the temporary folder
        try:
            made.rename(path)
        except OSError:
            if old.is_dir():
                old.rename(path)
            raise


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file as `new_file` does."""
    with new_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 as `new_file` does; what UTF-8 cannot encode becomes "?"."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    error: type[ValueError] = ValueError,
) -> None:
    """Write a safetensors file as `new_file` does, and wait until it is on the disk."""
    with new_file(path, error) as temporary:
        try:
            mode = temporary.stat().st_mode
            save_file(dict(tensors), temporary, dict(metadata))
            os.chmod(temporary, mode)  # safetensors makes a file of its own, that only we may read
        except SafetensorError as refused:
            raise OSError(str(refused)) from refused
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())


@contextmanager
def _writing(path: Path, error: type[ValueError], make_folder: bool = False) -> Iterator[None]:
    """Raise `error` for what the disk refuses."""
    if not make_folder and not path.parent.is_dir():
        raise error(f"{path} cannot be written: {path.parent} is not a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, RuntimeError) as refused:
        # torch's writer raises a RuntimeError of its own while it handles that of the disk
        cause: BaseException | None = refused
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        raise error(f"{path} could not be written: {cause.strerror or cause}") from refused
