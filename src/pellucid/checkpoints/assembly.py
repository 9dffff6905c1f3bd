"""From weights in a file to networks that have them; every format does it so.

A network is built on the meta device, where it has shapes and no memory, compared with the file key
by key, and then filled tensor by tensor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pellucid.checkpoints.header import CheckpointError
from pellucid.checkpoints.weights import Stored
from pellucid.clip import TextConfig
from pellucid.model import Model
from pellucid.tokenizer import BOS, EOS, Tokenizer

Network = TypeVar("Network", bound=nn.Module)
Layout = Literal["plain", "transposed", "conv", "third"]

READERS = 2  # tensors that are read at once; more were no faster
FIRST = 3  # how many wrong keys an error names
LONG = 200  # letters of a key with what is wrong with it


class Place(NamedTuple):
    """Where a parameter stands in a file, and how.

    layout: "plain"; "transposed"; "conv", a linear layer that is stored as a convolution of size 1;
    "third", one of three parameters of one shape that are stored as one, `part` says which.
    """

    key: str
    layout: Layout = "plain"
    part: int = 0

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the file of a parameter of this shape."""
        if self.layout == "transposed":
            return shape[::-1]
        if self.layout == "conv" and len(shape) == 2:
            return (*shape, 1, 1)
        return (3 * shape[0], *shape[1:]) if self.layout == "third" else shape

    def squeezed(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """As `shape`, but some files have the linear layer itself in a convolution's place."""
        return shape if self.layout == "conv" else self.shape(shape)

    def unpack(self, tensor: Tensor) -> Tensor:
        """What is in the file -> the parameter."""
        if self.layout == "transposed":
            return tensor.T.contiguous()
        if self.layout == "conv" and tensor.ndim == 4:
            return tensor[:, :, 0, 0]
        return tensor.chunk(3)[self.part] if self.layout == "third" else tensor


class Part(NamedTuple):
    """A network and where the file has its parameters: name -> place."""

    module: nn.Module
    weights: Mapping[str, Stored]
    places: Mapping[str, Place]


DRAWS = (nn.init.normal_, Tensor.normal_, nn.init.kaiming_uniform_, nn.init.uniform_)
PARAMETERS = 2**14  # the largest published networks have a quarter of it
MOST = 2**20  # no number of a config is larger


class Unfilled(TorchFunctionMode):
    """Initial weights are not drawn. On the meta device there is nothing to draw into, and yet
    torch would import its compiler to do so, which takes longer than all else here.

    A network of more than `PARAMETERS` tensors is a ValueError: a file can ask for any number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in DRAWS:
            return args[0] if args else kwargs["tensor"]
        if func is torch.empty:
            self.made += 1
            if self.made > PARAMETERS:
                raise ValueError(f"it would have more than {PARAMETERS} parameters")
        return func(*args, **kwargs)


def build(path: Path, what: str, kind: Callable[[Any], Network], config: Any) -> Network:
    """`kind(config)` on the meta device. Raises CheckpointError if there is no such network."""
    try:
        if not _bounded(dataclasses.astuple(config)):
            raise ValueError(f"a number in it is larger than {MOST}")
        with torch.device("meta"), Unfilled():
            return kind(config)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        name = getattr(kind, "__name__", what)
        raise CheckpointError(
            f"{path}: no {name} can be built from the config of its {what}: {error}"
        ) from error


def _bounded(value: Any) -> bool:
    """Whether no number in it is larger than any network needs: it could cost all memory."""
    if isinstance(value, tuple | list):
        return len(value) <= MOST and all(map(_bounded, value))
    return not isinstance(value, int | float) or abs(value) <= MOST


def same_names(module: nn.Module, prefix: str = "") -> dict[str, Place]:
    """The places of a file whose keys are `prefix` and the parameters' own names."""
    return {name: Place(prefix + name) for name in module.state_dict()}


def compare(path: Path, parts: Mapping[str, Part], unused: Collection[str] = ()) -> None:
    """Whether the file has every parameter in its shape, and nothing else but `unused`.

    Raises CheckpointError that names the first keys that are wrong.
    """
    missing, wrong, used, found = [], [], set(unused), dict[str, None]()
    for module, weights, places in parts.values():
        found |= dict.fromkeys(weights)
        for name, tensor in module.state_dict().items():
            key, shape = places[name].key, places[name].shape(tuple(tensor.shape))
            used.add(key)
            if key not in weights:
                missing.append(key)
            elif weights[key].shape not in (shape, places[name].squeezed(tuple(tensor.shape))):
                wrong.append(f"{key} is {weights[key].shape} and not {shape}")
            elif 0 in shape:
                wrong.append(f"{key} is empty")
            elif not weights[key].dtype.is_floating_point:
                wrong.append(f"{key} is {str(weights[key].dtype).removeprefix('torch.')}")
    extra = [key for key in found if key not in used]
    missing = list(dict.fromkeys(missing))  # three parameters may share a key
    wrong = list(dict.fromkeys(wrong))
    complaints = [
        f"{len(keys)} {what}: {', '.join(key[:LONG] for key in keys[:FIRST])}"
        + (", ..." if len(keys) > FIRST else "")
        for what, keys in (("missing", missing), ("unknown", extra), ("of the wrong shape", wrong))
        if keys
    ]
    if complaints:
        raise CheckpointError(f"{path}: its keys do not fit its config: {'; '.join(complaints)}")


def fill(part: Part, device: str | torch.device, dtype: torch.dtype | None) -> None:
    """Give the network its weights, a few at a time, and put it in eval mode; `dtype` None leaves
    each its own."""

    def read(name: str) -> Tensor:
        place = part.places[name]
        stored = part.weights[place.key]
        tensor = place.unpack(stored.get(stored.dtype if dtype is None else dtype))
        return tensor.to(device)

    names = list(part.module.state_dict())
    with ThreadPoolExecutor(READERS) as pool:  # casting leaves the interpreter to the others
        filled = dict(zip(names, pool.map(read, names), strict=True))
    part.module.load_state_dict(filled, assign=True, strict=True)
    part.module.eval()


def assemble(
    path: Path,
    parts: Mapping[str, Part],
    device: str | torch.device,
    dtype: torch.dtype | None,
    unused: Collection[str] = (),
) -> None:
    """`compare`, then `fill` every part."""
    compare(path, parts, unused)
    for part in parts.values():
        fill(part, device, dtype)


def check_tokenizer(path: Path, tokenizer: Tokenizer, text: TextConfig) -> None:
    """The text tower has a row for every piece, and a place for every token of a row."""
    if tokenizer.vocab_size > text.vocab_size or tokenizer.context_length > text.context_length:
        raise CheckpointError(
            f"{path}: its tokenizer ({tokenizer.vocab_size} pieces, rows of "
            f"{tokenizer.context_length}) does not fit its text tower ({text.vocab_size} "
            f"pieces, rows of {text.context_length})"
        )


# ---------------------------------------------------------------- writing


def gather(
    path: Path,
    parts: Mapping[str, tuple[nn.Module, Mapping[str, Place]]],
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """The tensors of a file: every parameter at its place. `dtype` None keeps the weights' own.

    Raises CheckpointError for a weight that is not finite, or not any more as `dtype`.
    """
    stored: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for what, (module, places) in parts.items():
        for name, tensor in module.state_dict().items():
            place = places[name]
            weight = cast(tensor.detach().cpu(), dtype)
            if weight.is_floating_point() and not weight.isfinite().all():
                raise CheckpointError(
                    f"{what}.{name} has values that are not finite in {weight.dtype}; "
                    f"{path} was not written"
                )
            if place.layout == "third":
                thirds.setdefault(place.key, {})[place.part] = weight
                continue
            if place.layout == "transposed":
                weight = weight.T
            stored[place.key] = weight.reshape(place.shape(tuple(tensor.shape))).contiguous()
    for key, three in thirds.items():
        stored[key] = torch.cat([three[i] for i in range(3)])
    return stored


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def write_file(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, whole or not at all. Raises CheckpointError."""
    if not path.parent.is_dir():
        raise CheckpointError(f"{path} cannot be written: {path.parent} is not a folder")
    try:
        # In the same folder, because only there is a rename one step.
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        try:
            save_file(dict(weights), name, dict(metadata))
            with open(name, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} could not be written: {error}") from error


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `path` at the end, whole or not at all.

    A folder that is there already makes room. Raises CheckpointError.
    """
    if not path.parent.is_dir():
        raise CheckpointError(f"{path} cannot be written: {path.parent} is not a folder")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as room:
            made, old = Path(room) / "new", Path(room) / "old"
            made.mkdir()
            yield made
            if path.is_dir() and not path.is_symlink():
                path.rename(old)  # and goes with the room
            try:
                made.rename(path)
            except OSError:
                if old.is_dir():
                    old.rename(path)
                raise
    except (OSError, shutil.Error) as error:
        raise CheckpointError(f"{path} could not be written: {error}") from error


EXTRAS = {"vision": "the vision tower of CLIP", "tiny_vae": "the tiny autoencoder"}


def extras_of(model: Model) -> tuple[str, ...]:
    """The parts of a model that only the native format has a place for, in words."""
    return tuple(what for part, what in EXTRAS.items() if getattr(model, part) is not None)


def check_has_place(path: Path, layout: str, model: Model, tokenizer: bool) -> None:
    """Raises CheckpointError that names all of a model's parts which only the native format has.

    tokenizer: whether the layout has a place for CLIP's.
    """
    unet, vae = getattr(model.backbone, "config", None), model.vae.config
    own = {
        "the map that its U-Net draws from the text": getattr(unet, "map_channels", 0) > 0,
        "FiLM in its U-Net": getattr(unet, "film", False),
        f"patches of {vae.patch_size}x{vae.patch_size} pixels in its autoencoder": (
            vae.patch_size > 1
        ),
        "the linear code beside its autoencoder": vae.shortcut,
        "the sum of the words beside the pooled text": model.text_encoding.pooled == "words",
        "its tokenizer, which is not of CLIP's kind": tokenizer
        and not {BOS, EOS} <= model.tokenizer.table()[0].keys(),
    }
    if found := [what for what, has in own.items() if has]:
        raise CheckpointError(
            f"{path} was not written: {layout} has no place for {'; '.join(found)}"
        )


def same_when_read(path: Path, layout: str, what: str, has: Any, read: Any) -> None:
    """Raises CheckpointError if `has`, which a layout does not store, would be `read` otherwise.

    Of two configs it names the first field that differs.
    """
    if has == read:
        return
    if dataclasses.is_dataclass(has) and type(has) is type(read):
        for field in dataclasses.fields(has):
            mine, other = getattr(has, field.name), getattr(read, field.name)
            if mine != other:
                what, has, read = f"{what}: {field.name}", mine, other
                break
    raise CheckpointError(
        f"{path} was not written: {layout} has no place for {what} {has}, which would be read as "
        f"{read}"
    )
