"""A GAN's generator on disk: one safetensors file that describes itself.

The weights have the generator's own names. The metadata entry "pellucid_gan" is a JSON object: the
format's version, the name, and the config of both networks. The discriminator is needed only for
training and is not in the file.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from pellucid.checkpoints import description
from pellucid.checkpoints.assembly import Part, build, compare, fill, same_names, size
from pellucid.checkpoints.metadata import dataclass_from, json_entry
from pellucid.checkpoints.weights import CheckpointSource
from pellucid.checkpoints.writing import gather, write
from pellucid.gan import GAN, GANConfig, Generator
from pellucid.safetensors_header import GAN_ENTRY, CheckpointError

VERSION = 1


def matches(source: CheckpointSource) -> bool:
    """Whether it is a safetensors file with a GAN's metadata."""
    return GAN_ENTRY in source.metadata


def _facts(source: CheckpointSource) -> dict[str, Any]:
    """What the file's metadata say: version, name, config. Raises CheckpointError."""
    if GAN_ENTRY not in source.weights.metadata:
        raise CheckpointError(
            f"{source.path} is not a GAN; expected a file that `pellucid train gan` wrote"
        )
    return json_entry(source, GAN_ENTRY, VERSION, ("version", "name", "config"))


def describe(source: CheckpointSource) -> dict[str, Any]:
    """What the header says, for `checkpoints.describe`."""
    facts = _facts(source)
    generator = _part(source, facts)
    assert isinstance(generator.module, Generator)
    config = dataclasses.asdict(generator.module.config)
    classes, side = list(config.pop("classes")), config.pop("size")
    return {
        "name": facts["name"],
        "kind": "the generator of a GAN",
        "parameters": {"generator": size(generator)},
        "types": description.types(generator.weights),
        "pictures": f"{side}x{side}",
        "classes": classes,
        "config": config,
    }


def _part(source: CheckpointSource, facts: dict[str, Any]) -> Part:
    """The generator, whose keys fit."""
    path = source.path
    config = dataclass_from(path, "config", GANConfig, facts["config"])
    generator = build(path, "generator", Generator, config)
    part = Part(generator, source.weights, same_names(generator))
    compare(path, {"generator": part})
    return part


def load_gan(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> GAN:
    """The GAN in the file `path`, on `device`, in eval mode.

    Raises CheckpointError: no such file, a diffusion model or another thing, keys that do not fit.
    """
    source = CheckpointSource(Path(path))
    facts = _facts(source)
    part = _part(source, facts)
    fill(part, device, dtype)
    assert isinstance(part.module, Generator)
    return GAN(part.module, str(facts["name"]))


def save_gan(gan: GAN, path: str | Path) -> None:
    """Write `gan` to `path`, whole or not at all. Raises CheckpointError if it cannot be written."""
    parts = {"generator": (gan.generator, same_names(gan.generator))}
    config = dataclasses.asdict(gan.generator.config)
    facts = {"version": VERSION, "name": gan.name, "config": config}
    metadata = {GAN_ENTRY: json.dumps(facts, ensure_ascii=False)}
    write(path, gather(Path(path), parts, None), metadata)
