"""What torch.save wrote (.ckpt, .pt, .bin): a pickle, opened only with weights_only=True."""

from __future__ import annotations

import io
import pickle
import pickletools
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.safetensors_header import CheckpointError

PICKLE_BYTES = 2**23  # of the part without tensors; an original file's has a twentieth of it
RENEW_BYTES = 2**26  # of a mapped pickle, read and cast, before the mapping is renewed


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


class Inert:
    """Replaces what Lightning and numpy store next to the weights: accepts everything, does nothing."""

    def __new__(cls, *args: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class Parameters(Inert):
    """Replaces torch's ParameterDict, and keeps its content."""

    def __setstate__(self, state: Any) -> None:
        self.inside: Any = state.get("_parameters") if isinstance(state, dict) else None


# Classes that the original Stable Diffusion .ckpt files name. They hold no weights.
SETS = ("params_ema", "params")  # of BasicSR: the weights, and their average
IGNORED = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.model_checkpoint",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)


def open_pickle(path: Path) -> Any:
    """The content of a small file that torch.save wrote; nothing in it is run."""
    return _load(path, _check(path))


def _check(path: Path) -> bool:
    """Whether the pickle is a zip file. Raises CheckpointError if it is damaged."""
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if zipped:
        _check_zip(path)
    else:
        _check_legacy(path)
    return zipped


def _check_zip(path: Path) -> None:
    """torch.save never compresses; a compressed file is a zip bomb, or not a checkpoint."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile's own, and any other that damaged numbers cause
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
    """The format before 2020: a magic number, the version, the machine and the tensors' shapes, as
    consecutive pickles, then the numbers."""
    with path.open("rb") as file:
        start = io.BytesIO(file.read(PICKLE_BYTES))
    try:
        for _ in range(4):
            for _ in pickletools.genops(start):
                pass
    except Exception as error:  # damaged bytes can cause any
        raise CheckpointError(
            f"{path} is a damaged or truncated pickle (torch.save): {error}"
        ) from error


class TensorPickle:
    """A pickle of tensors, mapped into memory if it is a zip file. Raises CheckpointError."""

    def __init__(self, path: Path) -> None:
        self.path, self.mapped = path, _check(path)
        self.opened: dict[str, Tensor] | None = None
        self.read = 0
        self.lock = threading.Lock()  # several threads read tensors

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
                    # Pages that were read stay in memory as long as the mapping does.
                    self.opened, self.read = None, 0
                return cast

        return get


def _load(path: Path, mapped: bool) -> Any:
    allowed: list[Any] = [(Inert, name) for name in IGNORED]
    allowed.append((Parameters, "torch.nn.modules.container.ParameterDict"))
    try:
        with torch.serialization.safe_globals(allowed):
            if path.suffix == ".safetensors":  # torch trusts this ending
                with path.open("rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        reason = str(error)
        if "Unsupported" in reason or "GLOBAL" in reason or "class" in reason:
            raise CheckpointError(
                f"{path} is a pickle (torch.save) that would run code or create objects other than "
                "tensors, and was not opened. Expected a safetensors file"
            ) from error
        raise CheckpointError(f"{path} is a damaged pickle (torch.save)") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} needs more memory than there is") from error
    except Exception as error:  # a damaged pickle can raise anything
        text = str(error).split("\n")[0][:200]
        raise CheckpointError(
            f"{path} is a damaged or truncated pickle (torch.save): {text}"
        ) from error


def _flat(path: Path, content: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint, which may be under "state_dict", next to a trainer's own data."""
    inner = content.get("state_dict") if isinstance(content, dict) else None
    found = inner if isinstance(inner, dict) else content
    if isinstance(found, dict):
        sets = {n: found[n] for n in SETS if isinstance(found.get(n), dict)}
        if sets:
            found = {
                f"{n}.{key}": value for n, inside in sets.items() for key, value in inside.items()
            }
    if isinstance(found, dict) and "string_to_param" in found:
        raise CheckpointError(f"{path} is a pickle of a textual-inversion embedding, not a model")
    if not isinstance(found, dict) or not found:
        raise CheckpointError(
            f"{path} is a pickle of a {type(found).__name__}; expected a dictionary of tensors"
        )
    for key, value in found.items():
        plain = isinstance(value, Tensor) and value.layout == torch.strided
        if not isinstance(key, str) or not plain or value.is_quantized:
            raise CheckpointError(
                f"{path} is a pickle in which {str(key)[:80]!r} is a {type(value).__name__}; "
                "expected a dictionary of tensors"
            )
    return {key: value.detach() for key, value in found.items()}
