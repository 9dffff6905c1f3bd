"""Writing files and folders whole or not at all.

What is written is made in a hidden folder next to its place, because only there is a rename one
step, and moves to its place when it is complete. A crash, a kill or a full disk never leaves half a
file, and an older file of the same name stays until the new one is ready. What a killed process
left behind is removed by the next one that writes there.
"""

from __future__ import annotations

import codecs
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows: what a killed process left stays there
    flock = None  # type: ignore[assignment]

HIDDEN = ".pellucid-"  # the names of the hidden folders begin with this
LEAST_ROOM = 2_000_000  # bytes that are left on the disk before anything is written
LONGEST_NAME = 255  # bytes, of most file systems


@contextmanager
def new_file(
    path: str | Path,
    error: type[ValueError] = ValueError,
    make_folder: bool = False,
    replace: bool = True,
) -> Iterator[Path]:
    """A temporary path to write to, which becomes `path` at the end of the block.

    It is removed if the block raises. make_folder: create the folder of `path` if it is missing.
    replace: a file of that name is replaced; without it, raises FileExistsError at the end, also for
    a link, a folder, and a name that another process has taken in the meantime. Raises `error`,
    which names `path`, if the folder does not exist or the disk refuses to write. The file has the
    mode that `open` gives to a new one.
    """
    path = Path(path)
    with _writing(path, error, make_folder), _hidden_folder(path.parent) as hidden:
        temporary = hidden / "new"
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        if temporary.stat().st_mode != mode:  # safetensors makes files that only their owner reads
            with suppress(OSError):  # some file systems have no modes
                temporary.chmod(mode)
        if not replace:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o666))  # the name is ours from here on
        os.replace(temporary, path)


@contextmanager
def new_folder(path: str | Path, error: type[ValueError] = ValueError) -> Iterator[Path]:
    """A temporary folder to write into, which replaces the folder `path` at the end of the block.

    Removed and refused as in `new_file`.
    """
    path = Path(path)
    with _writing(path, error), _hidden_folder(path.parent) as hidden:
        made, old = hidden / "new", hidden / "old"
        made.mkdir()
        yield made
        if path.is_dir() and not path.is_symlink():
            path.rename(old)  # and is removed with the hidden folder
        try:
            made.rename(path)
        except OSError:
            if old.is_dir():
                old.rename(path)
            raise


def save_new(save: Callable[[Path], None], path: Path, ending: str | None = None) -> Path:
    """Save as `path`, or with a number before its ending, -2, -3, ..., if that is taken; the path.

    ending: None is the last suffix. save: must raise FileExistsError if the path is taken, as
    `new_file` does without `replace`.
    """
    number, new = 1, path
    ending = path.suffix if ending is None else ending
    stem = path.name.removesuffix(ending)
    while True:
        if not os.path.lexists(new):
            with suppress(FileExistsError):  # another process has just taken it
                save(new)
                return new
        number += 1
        new = path.with_name(f"{stem}-{number}{ending}")


def check_writable(path: Path, error: type[ValueError] = ValueError, folder: bool = False) -> None:
    """Raise `error` if no file can be written at `path`, or in a folder that has yet to be made.

    folder: `path` is a folder, and files are written in it.
    """
    for part in path.parts:
        if len(os.fsencode(part)) > LONGEST_NAME:
            raise error(
                f"{path} cannot be written: a name has at most {LONGEST_NAME} bytes, "
                f"{part[:20]}... has {len(os.fsencode(part))}"
            )
    there = _folder_of(path / "new" if folder else path)
    if not there.is_dir():
        raise error(f"{path} cannot be written: {there} is a file and not a folder")
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as refused:
        raise error(
            f"{path} cannot be written: no file can be made in {there} ({refused.strerror})"
        ) from refused
    check_room(path, LEAST_ROOM, error, folder)


def check_room(
    path: Path, needed: int, error: type[ValueError] = ValueError, folder: bool = False
) -> None:
    """Raise `error` if the disk of `path`, a file or a folder, has less than `needed` bytes left."""
    there = _folder_of(path / "new" if folder else path)
    total, _, free = shutil.disk_usage(there)
    if total > 0 and free < needed:  # some file systems do not know how large they are
        raise error(
            f"{path} cannot be written: about {needed / 1e6:,.0f} MB are needed, and {there} has only "
            f"{free / 1e6:,.1f} MB left on its disk"
        )


def _folder_of(path: Path) -> Path:
    """The nearest folder of a path that exists."""
    return next((folder for folder in path.parents if os.path.lexists(folder)), Path())


def decoded_text(data: bytes, name: str | Path) -> str:
    """A text that a person wrote, as UTF-8 or as UTF-16 with its mark, which PowerShell writes; without
    the mark, and with "\n" at the ends of lines.

    ValueError that names the file, and the line, if it is another encoding.
    """
    utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{name}, line {line}: the text must be UTF-8") from error
    if "\0" in text:
        raise ValueError(
            f"{name}: the text must be UTF-8; it has zeros, as UTF-16 without a mark has"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: Path, most: int = 64_000_000) -> str:
    """The text in a file of at most `most` bytes, as `decoded_text`. OSError: it cannot be
    read. ValueError: a larger one, or another encoding."""
    with path.open("rb") as file:  # a device need not end
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path} is too large: more than {most / 1e6:g} MB")
    return decoded_text(data, path)


def write_bytes(path: str | Path, data: bytes, replace: bool = True) -> None:
    """Write a file as `new_file` does."""
    with new_file(path, replace=replace) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str, replace: bool = True) -> None:
    """Write UTF-8 as `new_file` does; what UTF-8 cannot encode becomes "?"."""
    write_bytes(path, text.encode("utf-8", "replace"), replace)


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    error: type[ValueError] = ValueError,
    replace: bool = True,
) -> None:
    """Write a safetensors file as `new_file` does, and wait until it is on the disk."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file  # imports torch, which `--help` must not wait for

    with new_file(path, error, replace=replace) as temporary:
        try:
            save_file(dict(tensors), temporary, dict(metadata))
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
        if isinstance(refused, FileExistsError) and Path(refused.filename) == path:
            raise  # the name is taken
        # torch's writer raises a RuntimeError of its own while it handles that of the disk
        cause: BaseException | None = refused
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        raise error(f"{path} could not be written: {cause.strerror or cause}") from refused


# ---------------------------------------------------------------- hidden folders


@contextmanager
def _hidden_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, which is removed at the end.

    Its lock shows other processes that it is in use; one that nobody holds is a leftover.
    """
    _remove_leftovers(parent)
    hidden, lock = parent, None
    try:
        while lock is None:
            hidden = parent / f"{HIDDEN}{secrets.token_hex(4)}"
            hidden.mkdir()
            try:
                lock = _lock(hidden)  # None: it was taken for a leftover
            except OSError:
                break
        yield hidden
    finally:
        if hidden != parent:
            shutil.rmtree(hidden, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_leftovers(parent: Path) -> None:
    """Remove the hidden folders that processes left behind when they were killed."""
    with suppress(OSError):
        for folder in [parent / name for name in os.listdir(parent) if name.startswith(HIDDEN)]:
            lock = _lock(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the lock of a folder as long as it is open.

    None: another process holds it, or has removed the folder. OSError: there are no locks here.
    """
    if flock is None:
        raise OSError("this system has no locks")
    try:
        lock = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        flock(lock, LOCK_EX | LOCK_NB)
        there = folder.is_dir()
    except OSError as refused:
        os.close(lock)
        if isinstance(refused, BlockingIOError):
            return None
        raise
    if not there:
        os.close(lock)
    return lock if there else None
