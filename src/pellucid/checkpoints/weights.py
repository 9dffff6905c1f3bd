"""The tensors of a file, which are not read before they are asked for.

Three kinds of file, told apart by their first bytes and not by their name: safetensors; an
index.json that says in which of several files each tensor is; and what torch.save wrote (.ckpt,
.pt, .bin), which is a pickle and is opened only in torch's mode that runs nothing.
"""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pellucid.checkpoints.header import CheckpointError, read_header

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
READ_BYTES = 2**16  # at a time, of a tensor that is cast: stays in cache, and in one thread
PICKLE_BYTES = 2**23  # of the part that is not tensors; an original file's has a twentieth of it
RENEW_BYTES = 2**26  # of a mapped pickle, read and cast, before the mapping is made anew


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


def is_pickle(path: Path) -> bool:
    """Whether torch.save wrote `path`: a zip file, or before 2020 a bare pickle."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError:
        return False
    if start[4:] == b"\0\0\0\0{":  # a safetensors file: its length may begin as a pickle does
        return False
    return start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x04"))


def is_index(path: Path) -> bool:
    """Whether `path` is the JSON that says which tensor is in which file."""
    try:
        with path.open("rb") as file:
            return file.read(64).lstrip()[:1] == b"{" and '"weight_map"' in path.read_text("utf-8")
    except (OSError, ValueError):
        return False


def open_weights(path: Path) -> Weights:
    """The tensors in `path`: a safetensors file, an index of several, or a pickle.

    Only headers are read. Raises CheckpointError: truncated, no such file, a pickle that asks for
    code to be run, an index that is wrong.
    """
    if not path.is_file():  # a pipe would be waited for
        raise CheckpointError(f"{path} is not a file; a file of weights is wanted")
    if is_index(path):
        return _sharded(path)
    return _single(path)


def _single(path: Path) -> Weights:
    if is_pickle(path):
        return _pickled(path)
    header = read_header(path)
    metadata = header.pop("__metadata__", None) or {}
    try:
        file = safe_open(path, framework="pt", device="cpu")  # checks all offsets
        names = set(file.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    start = 8 + int.from_bytes(_first(path, 8), "little")
    stored = {}
    for key, entry in header.items():
        if entry["dtype"] not in DTYPES or key not in names:
            raise CheckpointError(
                f"{path}: {key} has the type {entry['dtype']}; known are {', '.join(DTYPES)}"
            )
        shape, kind = tuple(entry["shape"]), DTYPES[entry["dtype"]]
        get = _reader(path, file, key, shape, kind, start + entry["data_offsets"][0])
        stored[key] = Stored(shape, kind, get)
    return Weights(path, stored, {str(k): str(v) for k, v in metadata.items()})


def _first(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _reader(
    path: Path,
    file: Any,
    key: str,
    shape: tuple[int, ...],
    kind: torch.dtype,
    begin: int,
) -> Callable[[torch.dtype], Tensor]:
    def get(dtype: torch.dtype) -> Tensor:
        try:
            if dtype == kind:
                mapped: Tensor = file.get_tensor(key)
                return mapped
            # Through the mapping its pages would stay in memory beside what is made of them.
            whole = torch.empty(shape, dtype=dtype)
            buffer = bytearray(READ_BYTES)
            read = torch.frombuffer(buffer, dtype=kind)
            with path.open("rb", buffering=0) as raw:
                raw.seek(begin)
                for piece in whole.view(-1).split(len(read)):
                    count = len(piece) * kind.itemsize
                    if raw.readinto(memoryview(buffer)[:count]) != count:
                        raise CheckpointError(f"{path} became shorter while it was read")
                    piece.copy_(read[: len(piece)])
            return whole
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error

    return get


# ---------------------------------------------------------------- several files


def _sharded(path: Path) -> Weights:
    try:
        if path.stat().st_size > INDEX_BYTES:
            raise CheckpointError(f"{path} has more than {INDEX_BYTES} bytes: it is no index")
        places = json.loads(path.read_text("utf-8"))["weight_map"]
        wanted = {str(key): str(name) for key, name in places.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not an index of weights: {error!r}") from error
    stored: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    pickled = False
    for name in sorted(set(wanted.values())):
        # Only what lies beside the index: a path could name any file of the machine.
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise CheckpointError(
                f"{path} names the file {name!r}; a file in the same folder is wanted"
            )
        file = path.parent / name
        if not file.is_file():
            raise CheckpointError(f"{path} names the file {name!r}, which does not exist")
        if is_index(file):
            raise CheckpointError(f"{path} names the file {name!r}, which is itself an index")
        shard = _single(file)
        for key, value in shard.items():
            if wanted.get(key) == name:
                stored[key] = value
            elif key in wanted:
                raise CheckpointError(f"{path}: {key} is in {name} and in {wanted[key]}")
            else:
                raise CheckpointError(f"{path} does not say that {key} is in {name}")
        metadata |= shard.metadata
        pickled |= shard.pickled
    if missing := [key for key in wanted if key not in stored]:
        raise CheckpointError(
            f"{path} says that {missing[0]} is in {wanted[missing[0]]}, where it is not"
        )
    return Weights(path, stored, metadata, pickled)


# ---------------------------------------------------------------- pickles


class Inert:
    """Stands for what Lightning and numpy put beside the weights: it takes all and does nothing."""

    def __new__(cls, *args: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Parameters(Inert):
    """Stands for torch's ParameterDict, and keeps what is in it."""

    def __setstate__(self, state: Any) -> None:
        self.inside: Any = state.get("_parameters") if isinstance(state, dict) else None


# The original Stable Diffusion .ckpt files name these. They are not weights, so they need not work.
BESIDE = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.model_checkpoint",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)


def open_pickle(path: Path) -> Any:
    """What torch.save wrote into a small file, whatever it is; nothing in it is run."""
    return _load(path, _checked(path))


def _checked(path: Path) -> bool:
    """Whether the pickle is a zip file. Raises CheckpointError if it is damaged."""
    zipped = _first(path, 4) == b"PK\x03\x04"
    if zipped:
        _check_zip(path)
    else:
        _check_legacy(path)
    return zipped


def _pickled(path: Path) -> Weights:
    source = _Pickle(path, _checked(path))
    stored: dict[str, Stored] = {}
    room = 4 * path.stat().st_size + 2**20  # several tensors may share their memory
    for key, tensor in source.tensors().items():
        size = tensor.numel() * tensor.element_size()
        room -= size
        if size > tensor.untyped_storage().nbytes() or room < 0:
            raise CheckpointError(f"{path}: {key} is larger than the memory that it stands for")
        stored[key] = Stored(tuple(tensor.shape), tensor.dtype, source.reader(key))
    return Weights(path, stored, {}, pickled=True)


def _check_zip(path: Path) -> None:
    """torch.save never compresses; what does is a bomb, or no checkpoint."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile's own, and what damaged numbers lead it to
        raise CheckpointError(
            f"{path} is a damaged or truncated zip file (torch.save): {error}"
        ) from error
    if not any(entry.filename.endswith("/data.pkl") for entry in entries):
        raise CheckpointError(f"{path} is a zip file, but not one that torch.save wrote")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise CheckpointError(
                f"{path}: {entry.filename} is compressed, which torch.save never does"
            )
        if entry.filename.endswith(".pkl") and entry.file_size > PICKLE_BYTES:
            raise CheckpointError(f"{path}: {entry.filename} has {entry.file_size} bytes")


def _check_legacy(path: Path) -> None:
    """Before 2020: the format's number, its version, the machine, the tensors' shapes, all as
    pickles one after the other, and then the numbers."""
    with path.open("rb") as file:
        start = io.BytesIO(file.read(PICKLE_BYTES))
    try:
        for _ in range(4):
            for _ in pickletools.genops(start):
                pass
    except Exception as error:  # whatever damaged bytes lead it to
        raise CheckpointError(
            f"{path} is a damaged or truncated pickle (torch.save): {error}"
        ) from error


class _Pickle:
    """A pickle of tensors, mapped into memory where it is a zip file."""

    def __init__(self, path: Path, mapped: bool) -> None:
        self.path, self.mapped = path, mapped
        self.opened: dict[str, Tensor] | None = None
        self.read = 0
        self.lock = threading.Lock()  # tensors are asked for by several threads

    def tensors(self) -> dict[str, Tensor]:
        if self.opened is None:
            self.opened = _flat(self.path, _load(self.path, self.mapped))
        return self.opened

    def reader(self, key: str) -> Callable[[torch.dtype], Tensor]:
        def get(dtype: torch.dtype) -> Tensor:
            with self.lock:
                tensor = self.tensors()[key]
                if tensor.dtype == dtype:
                    return tensor
                cast = tensor.to(dtype)
                self.read += tensor.numel() * tensor.element_size()
                if self.mapped and self.read > RENEW_BYTES:
                    # The pages that were read would stay in memory as long as the mapping does.
                    self.opened, self.read = None, 0
                return cast

        return get


def _load(path: Path, mapped: bool) -> Any:
    allowed: list[Any] = [(Inert, name) for name in BESIDE]
    allowed.append((Parameters, "torch.nn.modules.container.ParameterDict"))
    try:
        with torch.serialization.safe_globals(allowed):
            if path.suffix == ".safetensors":  # of which torch believes the name
                with path.open("rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        reason = str(error)
        if "Unsupported" in reason or "GLOBAL" in reason or "class" in reason:
            raise CheckpointError(
                f"{path} is a pickle (torch.save) that wants to run code or to make objects other "
                "than tensors, and was not opened. A safetensors file is wanted"
            ) from error
        raise CheckpointError(f"{path} is a damaged pickle (torch.save)") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} asks for more memory than there is") from error
    except Exception as error:  # a damaged pickle can raise anything
        text = str(error).split("\n")[0][:200]
        raise CheckpointError(
            f"{path} is a damaged or truncated pickle (torch.save): {text}"
        ) from (error)


def _flat(path: Path, content: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint, which may lie under "state_dict" beside a trainer's own things."""
    inner = content.get("state_dict") if isinstance(content, dict) else None
    found = inner if isinstance(inner, dict) else content
    if isinstance(found, dict) and "string_to_param" in found:
        raise CheckpointError(f"{path} is a pickle of a textual-inversion embedding, not a model")
    if not isinstance(found, dict) or not found:
        raise CheckpointError(
            f"{path} is a pickle of a {type(found).__name__}; a dictionary of tensors is wanted"
        )
    for key, value in found.items():
        plain = isinstance(value, Tensor) and value.layout == torch.strided
        if not isinstance(key, str) or not plain or value.is_quantized:
            raise CheckpointError(
                f"{path} is a pickle in which {str(key)[:80]!r} is a {type(value).__name__}; "
                "a dictionary of tensors is wanted"
            )
    return {key: value.detach() for key, value in found.items()}
