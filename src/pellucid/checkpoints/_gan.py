"""A GAN's generator on disk: one safetensors file that says by itself what it is.

The weights have the generator's own names. The metadata entry "pellucid_gan" is a JSON object: the
format's version, the name, and the config of both networks. The discriminator has done its work and
is not in the file.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import torch

from pellucid.checkpoints import CheckpointError, read_header
from pellucid.checkpoints._assemble import Part, assemble, build, gather, same_names, write_file
from pellucid.checkpoints._weights import open_weights
from pellucid.checkpoints.native import dataclass_from
from pellucid.gan import GAN, GANConfig, Generator

VERSION = 1
ENTRY = "pellucid_gan"


def matches(path: Path) -> bool:
    """Whether `path` is a safetensors file with a GAN's metadata."""
    try:
        return ENTRY in (read_header(path).get("__metadata__") or {})
    except CheckpointError:
        return False


def facts_of(path: Path) -> dict[str, Any]:
    """What the file says of itself: version, name, config. Raises CheckpointError."""
    metadata = read_header(path).get("__metadata__") or {}
    if ENTRY not in metadata:
        raise CheckpointError(f"{path} is no GAN; a file that `pellucid train gan` made is wanted")
    try:
        facts = json.loads(metadata[ENTRY])
    except ValueError as error:
        raise CheckpointError(f"{path}: its {ENTRY!r} metadata is not JSON") from error
    wanted = {"version", "name", "config"}
    if not isinstance(facts, dict) or not wanted <= facts.keys():
        raise CheckpointError(f"{path}: its {ENTRY!r} metadata has not all of {sorted(wanted)}")
    if facts["version"] != VERSION:
        raise CheckpointError(
            f"{path} has format version {facts['version']}; this Pellucid reads {VERSION}"
        )
    return facts


def describe(path: Path) -> dict[str, Any]:
    """What the header says, for `checkpoints.describe`."""
    facts = facts_of(path)
    shapes = [stored.shape for stored in open_weights(path).values()]
    return {
        "name": facts["name"],
        "kind": "the generator of a GAN",
        "parameters": sum(math.prod(shape) for shape in shapes),
        "config": facts["config"],
    }


def read(path: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> GAN:
    """The GAN in `path`. Raises CheckpointError that names the first keys that are wrong."""
    facts = facts_of(path)
    config = dataclass_from(path, "config", GANConfig, facts["config"])
    generator = build(path, "generator", Generator, config)
    part = Part(generator, open_weights(path), same_names(generator))
    assemble(path, {"generator": part}, device, dtype)
    return GAN(generator, str(facts["name"]))


def write(gan: GAN, path: Path) -> None:
    """Write the generator to `path`, whole or not at all. Raises CheckpointError."""
    weights = gather(path, {"generator": (gan.generator, same_names(gan.generator))}, None)
    config = dataclasses.asdict(gan.generator.config)
    facts = {"version": VERSION, "name": gan.name, "config": config}
    write_file(path, weights, {ENTRY: json.dumps(facts, ensure_ascii=False)})
