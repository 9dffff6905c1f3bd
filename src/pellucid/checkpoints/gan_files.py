"""A GAN's generator on disk: one safetensors file that says by itself what it is.

The weights have the generator's own names. The metadata entry "pellucid_gan" is a JSON object: the
format's version, the name, and the config of both networks. The discriminator has done its work and
is not in the file.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from pellucid.checkpoints import description
from pellucid.checkpoints.assembly import (
    Part,
    assemble,
    build,
    compare,
    gather,
    same_names,
    write_file,
)
from pellucid.checkpoints.header import CheckpointError, read_header
from pellucid.checkpoints.metadata import dataclass_from
from pellucid.checkpoints.weights import open_weights
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
    generator = _part(path, facts)
    compare(path, {"generator": generator})
    assert isinstance(generator.module, Generator)
    config = dataclasses.asdict(generator.module.config)
    classes, side = list(config.pop("classes")), config.pop("size")
    return {
        "name": facts["name"],
        "kind": "the generator of a GAN",
        "parameters": {"generator": description.size(generator)},
        "types": description.types(generator.weights),
        "pictures": f"{side}x{side}",
        "classes": classes,
        "config": config,
    }


def _part(path: Path, facts: dict[str, Any]) -> Part:
    config = dataclass_from(path, "config", GANConfig, facts["config"])
    generator = build(path, "generator", Generator, config)
    return Part(generator, open_weights(path), same_names(generator))


def read(path: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> GAN:
    """The GAN in `path`. Raises CheckpointError that names the first keys that are wrong."""
    facts = facts_of(path)
    part = _part(path, facts)
    assemble(path, {"generator": part}, device, dtype)
    assert isinstance(part.module, Generator)
    return GAN(part.module, str(facts["name"]))


def write(gan: GAN, path: Path) -> None:
    """Write the generator to `path`, whole or not at all. Raises CheckpointError."""
    weights = gather(path, {"generator": (gan.generator, same_names(gan.generator))}, None)
    config = dataclasses.asdict(gan.generator.config)
    facts = {"version": VERSION, "name": gan.name, "config": config}
    write_file(path, weights, {ENTRY: json.dumps(facts, ensure_ascii=False)})
