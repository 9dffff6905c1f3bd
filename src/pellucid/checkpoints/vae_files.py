"""Autoencoders on disk: alone, as one file or as a folder of diffusers', or in a model's.

A file has the original names or diffusers', and does not say the scale of the latents; the
config.json in a folder does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pellucid.checkpoints import configs, description, families
from pellucid.checkpoints.assembly import Location, Part, build, compare, fill, same_names, size
from pellucid.checkpoints.identify import VAE_ALONE, what_is
from pellucid.checkpoints.json_config import JsonConfig, class_of
from pellucid.checkpoints.key_names import (
    NEST,
    VAE_PREFIXES,
    modern,
    prefix_of,
    vae_location,
    vae_locations,
)
from pellucid.checkpoints.shapes import under, vae_config
from pellucid.checkpoints.weight_files import weights_of
from pellucid.checkpoints.weights import CheckpointSource, existing, open_weights
from pellucid.safetensors_header import CheckpointError, first_keys
from pellucid.vae import VAE, VAEConfig

CLASS = "AutoencoderKL"  # diffusers' name
UNUSED = re.compile(r"(loss|model_ema|discriminator)\.")  # what training leaves in the file


def matches(source: CheckpointSource) -> bool:
    """Whether it is a folder of diffusers' with an autoencoder alone, or a file of one."""
    if source.path.is_dir():
        return class_of(source.path) == CLASS
    return what_is(source.keys) == VAE_ALONE


def load_vae(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    like: VAEConfig | None = None,
) -> VAE:
    """The autoencoder in a file or folder of its own, or in a whole model's.

    like: whose scale and shift of the latents it has if `path` is a file, which does not say
    them. Raises CheckpointError: no such file, no whole autoencoder in it.
    """
    found, _ = part(existing(path, "an autoencoder").path, like)
    fill(found, device, dtype)
    assert isinstance(found.module, VAE)
    return found.module


def describe(source: CheckpointSource) -> dict[str, Any]:
    """What `pellucid info` reports of an autoencoder alone."""
    found, unused = part(source.path)
    assert isinstance(found.module, VAE)
    config = found.module.config
    in_file = f"{description.shape_of(config)}; the file does not say their scale"
    return {
        "kind": VAE_ALONE,
        "parameters": {"vae": size(found)},
        "unused keys": unused,
        "latents": description.latents(config) if source.path.is_dir() else in_file,
        "types": description.types(found.weights),
        "keys": len(found.weights),
    }


def part(path: Path, like: VAEConfig | None = None) -> tuple[Part, list[str]]:
    """The network and where its weights are, which are not read yet; and the keys not needed.

    like: whose scale and shift of the latents it has if `path` is a file; None: those of the
    family of the model in the file, else of one with as many channels.
    Raises CheckpointError: no autoencoder in it, keys that are missing or of the wrong shape.
    """
    if path.is_dir():
        inside = path / "vae"  # in a model's folder
        folder = inside if inside.is_dir() and class_of(path) != CLASS else path
        network = build(folder, "VAE", VAE, config_of(folder))
        whole, unused = weights_in_folder(folder, network), list[str]()
    else:
        whole, unused = _of_file(path, like)
    compare(path, {"vae": whole}, unused)
    return whole, unused


def replacement(
    path: Path, channels: int, own: VAEConfig | None, usual: VAEConfig
) -> tuple[Part, list[str]]:
    """`part`, for a model whose network makes this number of channels.

    own: the config of the model's own autoencoder, if it has one. usual: used as `like` if not.
    Raises CheckpointError for an autoencoder of other latents.
    """
    found, unused = part(path, usual if own is None else own)
    assert isinstance(found.module, VAE)
    has, side = found.module.config, None if own is None else own.downsample
    if has.latent_channels != channels or side not in (None, has.downsample):
        raise CheckpointError(
            f"{path} has latents of {has.latent_channels} channels at 1/{has.downsample} of the "
            f"size; the model needs {channels}" + ("" if side is None else f" at 1/{side}")
        )
    return found, unused


# ---------------------------------------------------------------- diffusers' folder


def config_of(folder: Path) -> VAEConfig:
    """What its config.json says. Raises CheckpointError."""
    settings = JsonConfig.open(folder / "config.json")
    settings.fixed({"_class_name": CLASS})
    return configs.read_vae(settings)


def weights_in_folder(folder: Path, network: VAE) -> Part:
    """Where a folder of diffusers' has the weights of an autoencoder."""
    weights = open_weights(weights_of(folder))
    weights = replace(weights, stored={modern(key): value for key, value in weights.items()})
    original = vae_locations(network.state_dict(), len(network.config.block_out_channels))
    locations = {name: Location(name, original[name].layout) for name in same_names(network)}
    return Part(network, weights, locations)


# ---------------------------------------------------------------- one file


def _of_file(path: Path, like: VAEConfig | None) -> tuple[Part, list[str]]:
    weights = open_weights(path)
    stored = {key.removeprefix(NEST): value for key, value in weights.items()}
    prefix = prefix_of(stored, VAE_PREFIXES) or ""
    inside = {key: value for key, value in stored.items() if key.startswith(prefix)}
    shapes = under({key: value.shape for key, value in inside.items()}, prefix)
    ours = "encoder.down_blocks.0.resnets.0.norm1.weight" in shapes
    if not ours and "decoder.up.0.block.0.norm1.weight" not in shapes:
        what = what_is(stored)
        known = f"its keys begin with {first_keys(stored)}" if what is None else f"it is {what}"
        raise CheckpointError(f"{path} has no autoencoder in it: {known}")
    if ours:
        inside = {modern(key): value for key, value in inside.items()}
        shapes = {modern(key): shape for key, shape in shapes.items()}
    try:
        usual = _usual(stored, shapes["decoder.conv_in.weight"][1]) if like is None else like
        config = vae_config(_original(shapes) if ours else shapes, usual)
    except (KeyError, ValueError, IndexError, StopIteration) as error:
        raise CheckpointError(f"{path} is not a whole autoencoder: {error}") from error
    network = build(path, "VAE", VAE, config)
    locations = vae_locations(network.state_dict(), len(config.block_out_channels), prefix)
    if ours:
        locations = {name: Location(prefix + name, locations[name].layout) for name in locations}
    unused = [key for key in inside if UNUSED.match(key.removeprefix(prefix))]
    return Part(network, inside, locations), unused


def _usual(keys: Mapping[str, Any], channels: int) -> VAEConfig:
    """The autoencoder of the family whose text towers are in the file, else of the first family whose
    latents have this number of channels."""
    known = families.known().values()
    prefixes = {tower.prefix for family in known for tower in family.towers if tower.prefix}
    present = {prefix for prefix in prefixes if any(key.startswith(prefix) for key in keys)}
    own = [f for f in known if present & {tower.prefix for tower in f.towers}]
    same = [f for f in known if f.vae.latent_channels == channels]
    return (*own, *same, *known)[0].vae


def _original(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes by the original names, from those by ours."""
    levels = 1 + max(int(key.split(".")[2]) for key in shapes if key.startswith("encoder.down_b"))
    locations = {key: vae_location(key, levels) for key in shapes}
    return {found.key: shapes[key] for key, found in locations.items() if found is not None}
