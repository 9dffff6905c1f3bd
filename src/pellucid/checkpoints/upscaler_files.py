"""Files of upscalers: RRDBNet in the two layouts that are common, and SRVGG."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from pellucid.checkpoints import description
from pellucid.checkpoints.assembly import Location, Part, build, compare, fill
from pellucid.checkpoints.identify import UPSCALER
from pellucid.checkpoints.weights import CheckpointSource, existing, open_weights
from pellucid.esrgan import SRVGG, RRDBConfig, RRDBNet, SRVGGConfig
from pellucid.safetensors_header import CheckpointError, first_keys
from pellucid.upscale import NetworkUpscaler

# What is around the keys. Of two sets of weights the averaged one is better.
WRAPPERS = ("params_ema.", "params.", "state_dict.", "module.", "")
OLD = "model.0.weight"  # ESRGAN's first release numbers its layers
NAMES = {  # ESRGAN's second release, in the names of Real-ESRGAN
    "RRDB_trunk.": "body.",
    "trunk_conv.": "conv_body.",
    "HRconv.": "conv_hr.",
    "upconv": "conv_up",
    ".RDB": ".rdb",
}
SUPPORTED = "RRDBNet (ESRGAN, Real-ESRGAN) and SRVGG (Real-ESRGAN's compact networks)"
MOST_DOUBLINGS = 4


def matches(source: CheckpointSource) -> bool:
    """Whether it is an upscaler of this family."""
    return source.path.is_file() and bool(source.keys) and _layout(source.keys) is not None


def load_upscaler(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> NetworkUpscaler:
    """The upscaler of the ESRGAN family in `path`, named after the file.

    Raises CheckpointError: no such file, another kind, keys that are missing, unknown or of the wrong
    shape, weights that are not finite.
    """
    path = existing(path, "an upscaler").path
    part, unused = examine(path)
    compare(path, {"upscaler": part}, unused)
    fill(part, device, dtype)
    assert isinstance(part.module, RRDBNet | SRVGG)
    for name, weight in part.module.named_parameters():
        if not weight.isfinite().all():
            raise CheckpointError(f"{path} is damaged: {name} has values that are not finite")
    return NetworkUpscaler(path.stem, part.module.eval())


def describe(source: CheckpointSource) -> dict[str, Any]:
    """What `pellucid info` reports of a file."""
    part, unused = examine(source.path)
    compare(source.path, {"upscaler": part}, unused)
    network = part.module
    assert isinstance(network, RRDBNet | SRVGG)
    return {
        "kind": UPSCALER,
        "network": type(network).__name__,
        "scale": f"{network.config.scale:g}x",
        "width": network.config.width,
        "parameters": sum(p.numel() for p in network.parameters()),
        "types": description.types(source.weights),
    }


def examine(path: Path) -> tuple[Part, Collection[str]]:
    """The network on the meta device, where its weights are, and the keys of another set of them."""
    weights = open_weights(path)
    found = _layout(weights)
    if found is None:
        raise CheckpointError(
            f"{path} is not an upscaler of a known kind ({SUPPORTED}): its keys begin with "
            f"{first_keys(weights)}"
        )
    wrapper, kind = found
    shapes = weights.shapes()
    inside = {key.removeprefix(wrapper): s for key, s in shapes.items() if key.startswith(wrapper)}
    unused = [key for key in shapes if not key.startswith(wrapper)]
    names = {"old": _old_names, "new": _new_names, "srvgg": _same_names}[kind](inside)
    config = _srvgg(path, inside) if kind == "srvgg" else _rrdb(path, inside, names)
    network: Any = SRVGG if kind == "srvgg" else RRDBNet
    module = build(path, "upscaler", network, config)
    # A name that the file lacks is looked for under its own, and is missed there.
    located = {name: Location(wrapper + names.get(name, name)) for name in module.state_dict()}
    return Part(module, weights, located), unused


def _layout(keys: Collection[str]) -> tuple[str, str] | None:
    """What is around the keys, and which layout is inside: "old", "new" or "srvgg"."""
    for wrapper in WRAPPERS:
        inside = {key.removeprefix(wrapper) for key in keys if key.startswith(wrapper)}
        if OLD in inside and any(re.match(r"model\.1\.sub\.0\.RDB1\.", key) for key in inside):
            return wrapper, "old"
        if "conv_first.weight" in inside and (
            "body.0.rdb1.conv1.weight" in inside or "RRDB_trunk.0.RDB1.conv1.weight" in inside
        ):
            return wrapper, "new"
        if inside and all(re.fullmatch(r"body\.\d+\.(weight|bias)", key) for key in inside):
            return wrapper, "srvgg"
    return None


Shapes = dict[str, tuple[int, ...]]


def _same_names(shapes: Shapes) -> dict[str, str]:
    return {key: key for key in shapes}


def _new_names(shapes: Shapes) -> dict[str, str]:
    """Real-ESRGAN's names, and the file's."""
    found = {}
    for key in shapes:
        name = key
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        found[name] = key
    return found


def _old_names(shapes: Shapes) -> dict[str, str]:
    """As `_new_names`, of the numbered layers: 0 is the first convolution, 1 the blocks; the last
    two are conv_hr and conv_last, and those between enlarge."""
    layers_in = (re.match(r"model\.(\d+)\.weight$", key) for key in shapes)
    numbers = sorted(int(match[1]) for match in layers_in if match)
    last = [f"conv_up{i}" for i in range(1, len(numbers) - 2)] + ["conv_hr", "conv_last"]
    layers = dict(zip(numbers, ["conv_first", *last], strict=False))
    found: dict[str, str] = {}
    for key in shapes:
        _, number, rest = key.split(".", 2)
        if block := re.match(r"sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(.+)", rest):
            name = f"body.{block[1]}.rdb{block[2]}.conv{block[3]}.{block[4]}"
        elif trunk := re.match(r"sub\.\d+\.(weight|bias)", rest):
            name = f"conv_body.{trunk[1]}"
        else:
            name = f"{layers.get(int(number), number)}.{rest}"
        found[name] = key
    return found


def _rrdb(path: Path, shapes: Shapes, names: dict[str, str]) -> RRDBConfig:
    def side(name: str, axis: int) -> int:
        shape = shapes.get(names.get(name, ""), ())
        if len(shape) != 4:
            raise CheckpointError(f"{path}: {name} is missing or not that of a convolution")
        return shape[axis]

    blocks = {int(name.split(".")[1]) for name in names if name.startswith("body.")}
    doublings = sum(f"conv_up{i}.weight" in names for i in range(1, MOST_DOUBLINGS + 1))
    into, out = side("conv_first.weight", 1), side("conv_last.weight", 0)
    shuffle = math.isqrt(into // out) if into % out == 0 else 0
    if out != 3 or shuffle not in (1, 2, 4) or into != out * shuffle**2:
        raise CheckpointError(
            f"{path} takes {into} channels and gives {out}; supported are upscalers of RGB pictures"
        )
    return RRDBConfig(
        out,
        side("conv_first.weight", 0),
        len(blocks),
        side("body.0.rdb1.conv1.weight", 0),
        doublings,
        shuffle,
    )


def _srvgg(path: Path, shapes: Shapes) -> SRVGGConfig:
    last = max(int(key.split(".")[1]) for key in shapes)
    first = shapes.get("body.0.weight", ())
    end = shapes.get(f"body.{last}.weight", ())
    if len(first) != 4 or len(end) != 4 or first[1] != 3 or last % 2:
        raise CheckpointError(f"{path} is not an SRVGG network of RGB pictures")
    scale = math.isqrt(end[0] // 3)
    if end[0] != 3 * scale**2:
        raise CheckpointError(f"{path}: its last layer has {end[0]} channels, not 3 times a square")
    return SRVGGConfig(3, first[0], last // 2 - 1, scale)
