"""From weights in a file to networks that hold them; every format uses this.

A network is built on the meta device, where it has shapes and no memory, compared with the file key
by key, and then filled tensor by tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pellucid.checkpoints.weights import Stored
from pellucid.progress import Stage
from pellucid.safetensors_header import CheckpointError

Network = TypeVar("Network", bound=nn.Module)
Layout = Literal["plain", "transposed", "conv", "third"]

READERS = 2  # tensors that are read at once; more were no faster
THREADED = 2**22  # a part of fewer numbers is read before threads have shared it out
FIRST = 3  # how many wrong keys an error names
KEY_LENGTH = 200  # of a key and what is wrong with it, in an error


class Location(NamedTuple):
    """Where a parameter is in a file, and how it is stored there.

    layout: "plain"; "transposed"; "conv", a linear layer that is stored as a convolution of size 1;
    "third", one of three parameters of one shape that are stored as one, `part` is its number.
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
        """As `shape`, but some files store the linear layer itself in place of a convolution."""
        return shape if self.layout == "conv" else self.shape(shape)

    def unpack(self, tensor: Tensor) -> Tensor:
        """What is in the file -> the parameter."""
        if self.layout == "transposed":
            return tensor.T.contiguous()
        if self.layout == "conv" and tensor.ndim == 4:
            return tensor[:, :, 0, 0]
        return tensor.chunk(3)[self.part] if self.layout == "third" else tensor


class Part(NamedTuple):
    """A network and where its parameters are: name -> location in `weights`."""

    module: nn.Module
    weights: Mapping[str, Stored]
    locations: Mapping[str, Location]


DRAWS = (nn.init.normal_, Tensor.normal_, nn.init.kaiming_uniform_, nn.init.uniform_)
PARAMETERS = 2**13  # the largest published networks have half of it
LARGEST = 2**20  # no number of a config is larger


class Unfilled(TorchFunctionMode):
    """Skips the initialisation of weights: on the meta device it is useless, and it would import
    torch's compiler, which takes longer than everything else here.

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
    """`kind(config)` on the meta device. Raises CheckpointError if the config is not possible."""
    try:
        if not _bounded(dataclasses.astuple(config)):
            raise ValueError(f"a number in it is larger than {LARGEST}")
        with torch.device("meta"), Unfilled():
            return kind(config)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        name = getattr(kind, "__name__", what)
        raise CheckpointError(
            f"{path}: no {name} can be built from the config of its {what}: {error}"
        ) from error


def _bounded(value: Any) -> bool:
    """Whether no number is larger than any network needs: it could use up the memory."""
    if isinstance(value, tuple | list):
        return len(value) <= LARGEST and all(map(_bounded, value))
    return not isinstance(value, int | float) or abs(value) <= LARGEST


def same_names(module: nn.Module, prefix: str = "") -> dict[str, Location]:
    """The locations in a file whose keys are `prefix` and the parameters' own names."""
    return {name: Location(prefix + name) for name in module.state_dict()}


def size(part: Part) -> int:
    """How many numbers a network consists of."""
    return sum(parameter.numel() for parameter in part.module.parameters())


def memory_of(part: Part, device: torch.device, dtype: torch.dtype | None) -> int:
    """How many bytes `fill` needs on a device. What keeps its type stays in the file on a CPU."""
    needed = 0
    for name, tensor in part.module.state_dict().items():
        stored = part.weights[part.locations[name].key].dtype
        kind = stored if dtype is None else dtype
        if device.type != "cpu" or kind != stored:
            needed += tensor.numel() * kind.itemsize
    return needed


def compare(path: Path, parts: Mapping[str, Part], unused: Collection[str] = ()) -> None:
    """Check that the file has every parameter in its shape, and nothing else but `unused`.

    Raises CheckpointError that names the first wrong keys.
    """
    missing, wrong = dict[str, None](), dict[str, None]()  # three parameters may share a key
    used, present = set(unused), dict[str, None]()
    for module, weights, locations in parts.values():
        present |= dict.fromkeys(weights)
        for name, tensor in module.state_dict().items():
            location, shape = locations[name], tuple(tensor.shape)
            used.add(location.key)
            if location.key not in weights:
                missing[location.key] = None
            elif problem := _problem(weights[location.key], location, shape):
                wrong[f"{location.key} {problem}"] = None
    unknown = [key for key in present if key not in used]
    complaints = [
        f"{len(keys)} {what}: {', '.join(key[:KEY_LENGTH] for key in [*keys][:FIRST])}"
        + (", ..." if len(keys) > FIRST else "")
        for what, keys in (
            ("missing", missing),
            ("unknown", unknown),
            ("of the wrong shape", wrong),
        )
        if keys
    ]
    if complaints:
        raise CheckpointError(f"{path}: its keys do not fit its config: {'; '.join(complaints)}")


def _problem(stored: Stored, location: Location, shape: tuple[int, ...]) -> str:
    """What is wrong with a stored tensor for a parameter of this shape; "" if nothing is."""
    expected = location.shape(shape)
    if stored.shape not in (expected, location.squeezed(shape)):
        return f"is {stored.shape} and not {expected}"
    if 0 in expected:
        return "is empty"
    return "" if stored.dtype.is_floating_point else f"is {type_name(stored.dtype)}"


def type_name(dtype: torch.dtype) -> str:
    """ "float16" for torch.float16."""
    return str(dtype).removeprefix("torch.")


def fill(
    part: Part, device: str | torch.device, dtype: torch.dtype | None, loading: Stage | None = None
) -> None:
    """Give the network its weights, a few at a time, and put it in eval mode; `dtype` None keeps
    each weight's own type. loading: its `done` grows by how many numbers were read."""

    names = part.module.state_dict()

    def read(name: str) -> Tensor:
        location = part.locations[name]
        stored = part.weights[location.key]
        tensor = location.unpack(stored.get(stored.dtype if dtype is None else dtype)).to(device)
        # A part that is read again has the layout that it had.
        plain = names[name].is_contiguous()
        return tensor if plain else tensor.contiguous(memory_format=torch.channels_last)

    with ThreadPoolExecutor(READERS) as pool:  # casting releases the interpreter lock
        filled = {}
        tensors = (pool.map if size(part) >= THREADED else map)(read, names)
        for name, tensor in zip(names, tensors, strict=True):
            filled[name] = tensor
            if loading is not None:
                loading.done += tensor.numel()
    part.module.load_state_dict(filled, assign=True, strict=True)
    part.module.eval()
