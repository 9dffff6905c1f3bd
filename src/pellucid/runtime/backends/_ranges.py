"""Between which numbers the inputs of a network's layers lie, measured while the model draws.

What was measured is kept in a file, so that it is measured once for each network.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import Tensor, nn

from pellucid import files
from pellucid.model import Model
from pellucid.runtime.backends import Rehearse
from pellucid.runtime.backends.int8 import rounded_layers

VERSION = 1
"""Of the files; another one is measured again."""
MARGIN = 1.25
"""How much wider a range is taken than it was measured: other prompts go beyond it, and what is
beyond is cut off, which harms more than coarser steps."""
Ends = tuple[float, float]
Ranges = Mapping[int, Ends]
"""The least and the largest input of a layer, by the `data_ptr` of its weight."""


def ranges_of(model: Model, rehearse: Rehearse) -> tuple[Ranges, tuple[str, ...]]:
    """The ranges of the layers that are rounded, and a warning where they could not be kept."""
    layers = rounded_layers(model.backbone)
    path = folder() / f"{fingerprint(model.backbone)}.json"
    found = read(path)
    warnings: tuple[str, ...] = ()
    if found is None or found.keys() != layers.keys():
        found = measured(model, layers, rehearse)
        warnings = write(path, found)
    wide = {name: (MARGIN * low, MARGIN * high) for name, (low, high) in found.items()}
    return {layers[name].weight.data_ptr(): ends for name, ends in wide.items()}, warnings


def measured(model: Model, layers: dict[str, Any], rehearse: Rehearse) -> dict[str, Ends]:
    """The ranges by the names of the layers, while the model draws."""
    found: dict[str, Ends] = {}

    def hook(name: str) -> Any:
        def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            least, most = (float(end) for end in inputs[0].aminmax())
            low, high = found.get(name, (0.0, 0.0))
            found[name] = min(low, least), max(high, most)

        return look

    hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        rehearse(model)
    finally:
        for each in hooks:
            each.remove()
    return {name: found.get(name, (0.0, 0.0)) for name in layers}


def folder() -> Path:
    """Where the files are."""
    return platformdirs.user_cache_path("pellucid", appauthor=False) / "ranges"


def fingerprint(network: nn.Module) -> str:
    """Of the names, shapes, types and numbers of a network's parameters."""
    seen = hashlib.sha256(str(VERSION).encode())
    for name, parameter in network.named_parameters():
        seen.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} ".encode())
        numbers = parameter.detach().contiguous().view(-1)
        bits = numbers.view(torch.int16 if numbers.element_size() == 2 else torch.int32)
        # All numbers count in the sum, which is fast; some of them also in their order.
        seen.update(int(bits.sum(dtype=torch.int64)).to_bytes(8, "little", signed=True))
        seen.update(bits[:: max(1, len(bits) // 1024)].contiguous().numpy().tobytes())
    return seen.hexdigest()[:32]


def read(path: Path) -> dict[str, Ends] | None:
    """What is in a file; None if it is missing or damaged."""
    try:
        values = json.loads(path.read_text("utf-8"))
        found = {str(name): (float(low), float(high)) for name, (low, high) in values.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return found if all(-math.inf < a <= 0 <= b < math.inf for a, b in found.values()) else None


def write(path: Path, found: dict[str, Ends]) -> tuple[str, ...]:
    """Keep them, whole or not at all; a warning where that is not possible."""
    try:
        with files.new_file(path, make_folder=True) as temporary:
            temporary.write_text(json.dumps(found), "utf-8")
    except (OSError, ValueError) as error:
        return (f"the ranges of the layers are measured again the next time: {error}",)
    return ()
