"""The tensors of a file, which are read only when they are needed.

Three kinds of file, recognized by their first bytes and not by their name: safetensors; an index.json
that lists in which of several files each tensor is; and pickles that torch.save wrote.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pellucid.checkpoints.pickles import TensorPickle, is_pickle
from pellucid.safetensors_header import CheckpointError, read_header

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
INDEX_BYTES = 2**24
READ_BYTES = 2**16  # at a time, of a tensor that is cast: fits the cache, and needs one thread


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. `get(dtype)` brings it to memory; in its own dtype it stays a view of the
    mapped file, whose pages the system reads when they are used and can drop again."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    get: Callable[[torch.dtype], Tensor]


@dataclass(frozen=True, eq=False)
class Weights(Mapping[str, Stored]):
    """key -> `Stored`, over all files that belong together; `metadata` is safetensors' own."""

    path: Path
    stored: Mapping[str, Stored]
    metadata: Mapping[str, str]
    pickled: bool = False

    def __getitem__(self, key: str) -> Stored:
        return self.stored[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: stored.shape for key, stored in self.stored.items()}


class CheckpointSource:
    """A file or folder that may be a checkpoint. Its header is read at most once, when needed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _opened(self) -> Weights | CheckpointError:
        try:
            return open_weights(self.path)
        except CheckpointError as error:
            return error

    @property
    def weights(self) -> Weights:
        """The tensors of the file. Raises CheckpointError."""
        if isinstance(self._opened, CheckpointError):
            raise self._opened
        return self._opened

    @property
    def keys(self) -> Collection[str]:
        """The keys of the file; none if it cannot be opened, or is a folder."""
        return () if isinstance(self._opened, CheckpointError) else self._opened.stored.keys()

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of a safetensors file; none if it cannot be opened, or is something else."""
        return {} if isinstance(self._opened, CheckpointError) else self._opened.metadata


def existing(path: str | Path, expected: str) -> CheckpointSource:
    """A file or folder that is there. CheckpointError, which says what was `expected`, if not."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; expected {expected}")
    return CheckpointSource(path)


def open_weights(path: Path) -> Weights:
    """The tensors in `path`: a safetensors file, an index of several, or a pickle.

    Only headers are read. Raises CheckpointError: truncated, no such file, a pickle that would run
    code, an index that is wrong.
    """
    if not path.is_file():  # opening a pipe would block
        raise CheckpointError(f"{path} is not a file; expected a file of weights")
    return _sharded(path) if is_index(path) else _single(path)


def is_index(path: Path) -> bool:
    """Whether `path` is the JSON that lists which tensor is in which file."""
    try:
        with path.open("rb") as file:
            return file.read(64).lstrip()[:1] == b"{" and '"weight_map"' in path.read_text("utf-8")
    except (OSError, ValueError):
        return False


def _single(path: Path) -> Weights:
    if is_pickle(path):
        return _pickled(path)
    header = read_header(path)
    metadata = header.pop("__metadata__", None) or {}
    with path.open("rb") as raw:
        start = 8 + int.from_bytes(raw.read(8), "little")
        mapped, stored = _Mapped(path, _identity(raw)), dict[str, Stored]()
    try:
        entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        end = 0
        for key, entry in entries:
            if entry["dtype"] not in DTYPES:
                raise CheckpointError(
                    f"{path}: {key} has the type {entry['dtype']}; supported are {', '.join(DTYPES)}"
                )
            shape, kind = tuple(entry["shape"]), DTYPES[entry["dtype"]]
            begin, size = end, math.prod(shape) * kind.itemsize
            end += size
            if [begin, end] != entry["data_offsets"] or min(shape, default=0) < 0:
                raise ValueError(
                    f"{key} is not where the tensor before it ends, or of another size"
                )
            get = _reader(mapped, key, shape, kind, start + begin)
            stored[key] = Stored(shape, kind, get)
    except (ValueError, TypeError, LookupError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    stored = {key: stored[key] for key in header}
    return Weights(path, stored, {str(k): str(v) for k, v in metadata.items()})


class _Mapped:
    """A safetensors file; it takes address space once a tensor is needed in its own type."""

    def __init__(self, path: Path, identity: tuple[int, ...]) -> None:
        self.path, self.identity = path, identity

    def check(self, file: BinaryIO | RawIOBase) -> None:
        """CheckpointError if another file has taken the place of the one whose header was read."""
        if _identity(file) != self.identity:
            raise CheckpointError(f"{self.path} was changed while it was in use")

    @cached_property
    def file(self) -> Any:
        return safe_open(self.path, framework="pt", device="cpu")


def _identity(file: BinaryIO | RawIOBase) -> tuple[int, ...]:
    """What tells an open file from another one at its path."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _reader(
    mapped: _Mapped, key: str, shape: tuple[int, ...], kind: torch.dtype, begin: int
) -> Callable[[torch.dtype], Tensor]:
    """`Stored.get` of one tensor of a safetensors file, whose bytes start at `begin`."""
    path = mapped.path

    def get(dtype: torch.dtype) -> Tensor:
        try:
            if dtype == kind:
                whole: Tensor = mapped.file.get_tensor(key)
                return whole
            # Read through the mapping, its pages would stay in memory next to the cast tensor.
            whole = torch.empty(shape, dtype=dtype)
            buffer = bytearray(READ_BYTES)
            read = torch.frombuffer(buffer, dtype=kind)
            # From one half precision to the other there is no fast way; by float32 it takes a third.
            wide = torch.empty(len(read)) if kind.itemsize == dtype.itemsize == 2 else read
            with path.open("rb", buffering=0) as raw:
                mapped.check(raw)
                raw.seek(begin)
                for piece in whole.view(-1).split(len(read)):
                    count = len(piece)
                    size = count * kind.itemsize
                    if raw.readinto(memoryview(buffer)[:size]) != size:
                        raise CheckpointError(f"{path} became shorter while it was read")
                    piece.copy_(read[:count] if wide is read else wide[:count].copy_(read[:count]))
            return whole
        except (SafetensorError, OSError, RuntimeError) as error:  # of mapping it, the last
            if isinstance(error, RuntimeError) and "memory" in str(error):
                raise  # which is no fault of the file
            raise CheckpointError(f"{path} cannot be read: {error}") from error

    return get


def _pickled(path: Path) -> Weights:
    pickle = TensorPickle(path)
    stored: dict[str, Stored] = {}
    room = 4 * path.stat().st_size + 2**20  # several tensors may share their memory
    for key, tensor in pickle.tensors().items():
        size = tensor.numel() * tensor.element_size()
        room -= size
        if size > tensor.untyped_storage().nbytes() or room < 0:
            raise CheckpointError(f"{path}: {key} claims more bytes than the file stores for it")
        stored[key] = Stored(tuple(tensor.shape), tensor.dtype, pickle.reader(key))
    return Weights(path, stored, {}, pickled=True)


# ---------------------------------------------------------------- several files


def shards_of(index: Path) -> dict[str, Path]:
    """The files that an index names. CheckpointError for one that names none, or other places."""
    return {name: _shard_path(index, name) for name in sorted(set(_file_of(index).values()))}


def _file_of(index: Path) -> dict[str, str]:
    """Key -> the name of the file that it is in."""
    try:
        with index.open("rb") as file:
            text = file.read(INDEX_BYTES + 1)
        if len(text) <= INDEX_BYTES:
            weight_map = json.loads(text)["weight_map"]
            return {str(key): str(name) for key, name in weight_map.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is not an index of weights: {error!r}") from error
    raise CheckpointError(f"{index} has more than {INDEX_BYTES} bytes, too many for an index")


def _sharded(path: Path) -> Weights:
    file_of = _file_of(path)
    stored: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    pickled = False
    for name in sorted(set(file_of.values())):
        shard = _single(_shard_path(path, name))
        for key, value in shard.items():
            if file_of.get(key) == name:
                stored[key] = value
            elif key in file_of:
                raise CheckpointError(f"{path}: {key} is in {name} and in {file_of[key]}")
            else:
                raise CheckpointError(f"{path} does not list {key}, which is in {name}")
        metadata |= shard.metadata
        pickled |= shard.pickled
    if missing := [key for key in file_of if key not in stored]:
        raise CheckpointError(
            f"{path} lists {missing[0]} in {file_of[missing[0]]}, which does not have it"
        )
    return Weights(path, stored, metadata, pickled)


def _shard_path(index: Path, name: str) -> Path:
    # Only files next to the index: a path could name any file of the machine.
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise CheckpointError(f"{index} names the file {name!r}; it must be in the same folder")
    file = index.parent / name
    if not file.is_file():
        raise CheckpointError(f"{index} names the file {name!r}, which does not exist")
    if is_index(file):
        raise CheckpointError(f"{index} names the file {name!r}, which is itself an index")
    return file
