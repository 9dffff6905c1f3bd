"""From a model to the tensors of a file, and whether a layout can hold the model."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pellucid.backbones.unet import UNetConfig
from pellucid.checkpoints.assembly import Location
from pellucid.checkpoints.weights import DTYPES
from pellucid.files import check_room, new_file
from pellucid.model import Model
from pellucid.progress import stage
from pellucid.safetensors_header import CheckpointError
from pellucid.tokenizer import BOS, EOS

NAMES = {dtype: name for name, dtype in DTYPES.items()}
EXTRAS = {
    "vision": "the vision tower of CLIP",
    "tiny_vae": "the tiny autoencoder",
    "second_stage": "the super-resolution stage",
    "lexicon": "the list of the words that it has learned",
}


class Pending(NamedTuple):
    """A tensor that is computed when it is written, by `get`."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    get: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


EMPTY = Pending((0,), torch.float32, lambda: torch.empty(0))


Read = Callable[[str, str], Tensor]
"""(name of a network, name of a parameter) -> the parameter; of weights that a model does not hold."""


def gather(
    path: Path,
    parts: Mapping[str, tuple[nn.Module, Mapping[str, Location]]],
    dtype: torch.dtype | None,
    read: Read | None = None,
) -> dict[str, Pending]:
    """The tensors of a file: every parameter at its location. `dtype` None keeps the weights' own.

    read: where the parameters come from if the networks are on the meta device. The `get` of a tensor
    raises CheckpointError for a weight that is not finite, or is no longer as `dtype`.
    """
    places: dict[str, list[tuple[str, str, Tensor, Location]]] = {}
    for what, (module, locations) in parts.items():
        for name, tensor in module.state_dict().items():
            location = locations[name]
            places.setdefault(location.key, []).append((what, name, tensor, location))

    def get(stored: list[tuple[str, str, Tensor, Location]], kind: torch.dtype) -> Tensor:
        found = []
        for what, name, tensor, location in sorted(stored, key=lambda each: each[-1].part):
            weight = (tensor.detach() if read is None else read(what, name)).cpu().to(kind)
            numbers = (
                weight.float() if weight.itemsize == 1 else weight
            )  # torch cannot tell of 8 bits
            if weight.is_floating_point() and not numbers.isfinite().all():
                raise CheckpointError(
                    f"{what}.{name} has values that are not finite in {kind}; "
                    f"{path} was not written"
                )
            weight = weight.T if location.layout == "transposed" else weight
            third = location.layout == "third"
            found.append(weight if third else weight.reshape(location.shape(tuple(tensor.shape))))
        return torch.cat(found) if len(found) > 1 else found[0]

    pending = {}
    for key, stored in places.items():
        *_, tensor, location = stored[0]
        cast = dtype is not None and tensor.is_floating_point()
        kind = dtype if cast and dtype is not None else tensor.dtype
        shape = location.shape(tuple(tensor.shape))
        pending[key] = Pending(shape, kind, partial(get, stored, kind))
    return pending


def write(path: str | Path, tensors: Mapping[str, Pending], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file as `files.new_file` does, one tensor after the other, so that only one
    is in memory, and wait until it is on the disk. Raises CheckpointError."""
    path = Path(path)
    # As safetensors orders them: the largest numbers first, so that all begin at a multiple of these.
    names = sorted(tensors, key=lambda key: (-tensors[key].dtype.itemsize, key))
    ends = [*accumulate((tensors[name].size for name in names), initial=0)]
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, begin, end in zip(names, ends, ends[1:], strict=False):
        shape, dtype, _ = tensors[name]
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    check_room(path, ends[-1], CheckpointError)
    with (
        stage(f"writing {path.name}", ends[-1]) as now,
        new_file(path, CheckpointError) as temporary,
        temporary.open("wb") as file,
    ):
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            numbers = tensors[name].get().contiguous().reshape(-1).view(torch.uint8).numpy()
            if numbers.nbytes != tensors[name].size:
                raise ValueError(f"{name} has {numbers.nbytes} bytes, not {tensors[name].size}")
            file.write(numbers.data)
            now.done += numbers.nbytes
        file.flush()
        os.fsync(file.fileno())


def extras_of(model: Model) -> tuple[str, ...]:
    """The parts of a model that only the native format can hold, in words."""
    return tuple(what for part, what in EXTRAS.items() if getattr(model, part) is not None)


def check_has_place(path: Path, layout: str, model: Model, tokenizer: bool) -> None:
    """Raises CheckpointError that names everything in a model that only the native format can hold.

    tokenizer: whether the layout stores a tokenizer, which must be of CLIP's kind.
    """
    unet, vae = model.config, model.vae.config
    own = {
        "the map that its U-Net draws from the text": getattr(unet, "map_channels", 0) > 0,
        "FiLM in its U-Net": getattr(unet, "film", False),
        "patches of latents in its U-Net": isinstance(unet, UNetConfig) and unet.patch_size > 1,
        f"patches of {vae.patch_size}x{vae.patch_size} pixels in its autoencoder": (
            vae.patch_size > 1
        ),
        "the linear shortcut of its autoencoder": vae.shortcut,
        "the sum of the words next to the pooled text": model.text_encoding.pooled == "words",
        "its tokenizer, which is not of CLIP's kind": tokenizer
        and not {BOS, EOS} <= model.tokenizer.table()[0].keys(),
        f"the words {', '.join(model.tokenizer.words)} of its tokenizer": not tokenizer
        and bool(model.tokenizer.words),
    }
    if found := [what for what, has in own.items() if has]:
        raise CheckpointError(
            f"{path} was not written: {layout} has no place for {'; '.join(found)}"
        )


def same_when_read(path: Path, layout: str, pairs: Iterable[tuple[str, Any, Any]]) -> None:
    """Raises CheckpointError if anything of a model would be read back as something else.

    pairs: a name, what the model has, and what would be read. Of two configs the error names the
    first field that differs.
    """
    for what, has, read in pairs:
        if has == read:
            continue
        if dataclasses.is_dataclass(has) and type(has) is type(read):
            for field in dataclasses.fields(has):
                mine, other = getattr(has, field.name), getattr(read, field.name)
                if mine != other:
                    what, has, read = f"{what}: {field.name}", mine, other
                    break
        raise CheckpointError(
            f"{path} was not written: {layout} has no place for {what} {has}, which would be read "
            f"as {read}"
        )
