"""Autoencoders on disk: alone, as one file or as a folder of diffusers', or out of a model's.

A file has the original names or diffusers', and does not say the scale of the latents; the
config.json in a folder does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pellucid.checkpoints import configs, description, families, key_names
from pellucid.checkpoints.assembly import Part, Place, build, compare, fill, same_names
from pellucid.checkpoints.configs import Settings
from pellucid.checkpoints.families import SD1, SD3, SDXL_BASE
from pellucid.checkpoints.header import CheckpointError, first_keys
from pellucid.checkpoints.variants import weights_of
from pellucid.checkpoints.weights import open_weights
from pellucid.vae import VAE, VAEConfig

KIND = "AutoencoderKL"  # diffusers' name of the class
NEST = "state_dict."
GIVE = "give --vae a file or folder that has one"
PREFIXES = ("first_stage_model.", "vae.")
UNUSED = re.compile(r"(loss|model_ema|discriminator)\.")  # what training leaves beside it


def matches(path: Path) -> bool:
    """Whether `path` is a folder of diffusers' with an autoencoder alone."""
    return path.is_dir() and configs.class_of(path) == KIND


def read(
    path: Path, device: str | torch.device, dtype: torch.dtype, like: VAEConfig | None = None
) -> VAE:
    """The autoencoder in `path`, as `part` finds it."""
    found, _ = part(path, like)
    fill(found, device, dtype)
    assert isinstance(found.module, VAE)
    return found.module


def describe(path: Path) -> dict[str, Any]:
    """What `pellucid info` says of an autoencoder alone, without reading its weights."""
    found, unused = part(path)
    assert isinstance(found.module, VAE)
    config = found.module.config
    told = (
        description.latents(config)
        if path.is_dir()
        else f"{description.shape_of(config)}; the file does not say their scale"
    )
    return {
        "kind": "a VAE alone",
        "parameters": {"vae": description.size(found)},
        "unused keys": unused,
        "latents": told,
        "types": description.types(found.weights),
        "keys": len(found.weights),
    }


def part(path: Path, like: VAEConfig | None = None) -> tuple[Part, list[str]]:
    """The network and where its weights are, which are not read yet; and the keys not needed.

    like: whose scale and shift of the latents it has where `path` is a file; None is that of the
    model in the file, else Stable Diffusion 1's, or 3's where there are 16 channels.
    Raises CheckpointError: no autoencoder in it, keys that are missing or of the wrong shape.
    """
    if path.is_dir():
        inside = path / "vae"  # of a whole model's folder
        folder = path if matches(path) or not inside.is_dir() else inside
        whole, unused = of_folder(folder, config_of(folder)), list[str]()
    else:
        whole, unused = _of_file(path, like)
    compare(path, {"vae": whole}, unused)
    return whole, unused


def instead(
    path: Path, channels: int, own: VAEConfig | None, like: VAEConfig
) -> tuple[Part, list[str]]:
    """`part`, for a model whose network makes so many channels.

    own: the config of the model's own autoencoder, if it has one. like: as in `part`.
    Raises CheckpointError for an autoencoder of other latents.
    """
    found, unused = part(path, like if own is None else own)
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
    settings = Settings.open(folder / "config.json")
    settings.fixed({"_class_name": KIND})
    return configs.read_vae(settings)


def of_folder(folder: Path, config: VAEConfig) -> Part:
    """The network and its weights in a folder of diffusers'."""
    network = build(folder, "VAE", VAE, config)
    weights = open_weights(weights_of(folder))
    weights = replace(weights, stored={key_names.modern(k): value for k, value in weights.items()})
    levels = key_names.vae_places(network.state_dict(), len(config.block_out_channels))
    places = {name: Place(name, levels[name].layout) for name in same_names(network)}
    return Part(network, weights, places)


# ---------------------------------------------------------------- one file


def _of_file(path: Path, like: VAEConfig | None) -> tuple[Part, list[str]]:
    weights = open_weights(path)
    stored = {key.removeprefix(NEST): value for key, value in weights.items()}
    prefix = prefix_of(stored) or ""
    shapes = under({key: value.shape for key, value in stored.items()}, prefix)
    ours = "encoder.down_blocks.0.resnets.0.norm1.weight" in shapes
    if not ours and "decoder.up.0.block.0.norm1.weight" not in shapes:
        what = families.what_is(stored)
        told = f"its keys begin with {first_keys(stored)}" if what is None else f"it is {what}"
        raise CheckpointError(f"{path} has no autoencoder in it: {told}")
    if ours:
        stored = {key_names.modern(key): value for key, value in stored.items()}
        shapes = {key_names.modern(key): shape for key, shape in shapes.items()}
    try:
        if like is None:
            wide = shapes["decoder.conv_in.weight"][1] == SD3.vae.latent_channels
            like = SD3.vae if wide else SD1.vae
            if any(key.startswith("conditioner.") for key in stored):
                like = SDXL_BASE.vae
        config = families.vae_config(_original(shapes) if ours else shapes, like)
    except (KeyError, ValueError, IndexError, StopIteration) as error:
        raise CheckpointError(f"{path} is no whole autoencoder: {error}") from error
    network = build(path, "VAE", VAE, config)
    places = key_names.vae_places(network.state_dict(), len(config.block_out_channels), prefix)
    if ours:
        places = {name: Place(prefix + name, places[name].layout) for name in places}
    inside = {key: value for key, value in stored.items() if key.startswith(prefix)}
    unused = [key for key in inside if UNUSED.match(key.removeprefix(prefix))]
    return Part(network, inside, places), unused


def prefix_of(keys: Collection[str]) -> str | None:
    """What an autoencoder's keys in a model's file begin with; None if there is none in it."""
    return next((start for start in PREFIXES if any(key.startswith(start) for key in keys)), None)


def under(shapes: families.Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """Those whose key begins with `prefix`, without it."""
    return {k.removeprefix(prefix): shape for k, shape in shapes.items() if k.startswith(prefix)}


def _original(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes by the original names, from those by ours."""
    levels = 1 + max(int(key.split(".")[2]) for key in shapes if key.startswith("encoder.down_b"))
    return {
        place.key: shape
        for key, shape in shapes.items()
        if (place := key_names.place(key, key_names.VAE, levels)) is not None
    }
