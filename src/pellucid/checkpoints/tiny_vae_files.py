"""Tiny autoencoders on disk: the original files with numbered keys, and diffusers'.

Those of diffusers are a folder with a config.json, or the file of weights in it. The original files
hold one half each, a sequence whose layers are numbered; in the decoder the
number 0 is a layer without weights, which diffusers does not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pellucid.checkpoints import configs, description
from pellucid.checkpoints.assembly import Part, Place, assemble, build, compare
from pellucid.checkpoints.configs import Settings
from pellucid.checkpoints.header import CheckpointError
from pellucid.checkpoints.variants import weights_of
from pellucid.checkpoints.weights import Weights, open_weights
from pellucid.tiny_vae import BLOCKS, TinyVAE, TinyVAEConfig, published
from pellucid.vae import VAEConfig

# The prefixes of encoder and decoder, and the number that the decoder's first layer has: diffusers';
# of both originals in one; of the original files, which only their shapes tell apart.
LAYOUTS = (
    ("encoder.layers.", "decoder.layers.", 0),
    ("encoder.", "decoder.", 1),
    ("taesd_encoder.", "taesd_decoder.", 1),
    ("", "", 1),
)
KEY = re.compile(r"((taesd_)?(en|de)coder\.)?(layers\.)?\d+\.(conv\.\d+\.)?(weight|bias)$")
UNUSED = ("vae_scale", "vae_shift")  # the latents' scale, in files for another program
ENDINGS = ("_decoder.safetensors", ".safetensors", "_decoder.pth", ".pth")
ENCODER_LAST = 14  # the number of its last layer
MOST_BYTES = 2**26  # the published ones have a sixth of it
CLASS = "AutoencoderTiny"  # diffusers' name of it
# What its config.json can vary and the network here cannot; the widths show in the weights.
FIXED = {
    "_class_name": CLASS,
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
    "num_encoder_blocks": [1, BLOCKS, BLOCKS, BLOCKS],
    "num_decoder_blocks": [BLOCKS, BLOCKS, BLOCKS, 1],
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "scaling_factor": 1,
    "shift_factor": 0,
}
WIDTHS = ("block_out_channels", "encoder_block_out_channels", "decoder_block_out_channels")


@dataclass(frozen=True)
class Found:
    """What a file holds: the shape, and where its parameters stand."""

    path: Path
    weights: Weights
    config: TinyVAEConfig
    prefixes: tuple[str, str]
    first: int

    def part(self) -> Part:
        """The network on the meta device, with the place of each parameter."""
        network = build(self.path, "tiny autoencoder", TinyVAE, self.config)
        return Part(network, self.weights, places(network, self.prefixes, self.first))


def matches(path: Path) -> bool:
    """Whether `path` is a file or folder with a tiny autoencoder, or half of one."""
    if path.is_dir():
        return configs.class_of(path) == CLASS
    try:
        return path.stat().st_size <= MOST_BYTES and is_tiny_vae(open_weights(path))
    except (OSError, CheckpointError):
        return False


def is_tiny_vae(keys: Iterable[str]) -> bool:
    """Whether these are the keys of a tiny autoencoder, or of half of one."""
    names = [key for key in keys if key not in UNUSED]
    return bool(names) and all(KEY.match(name) for name in names)


def read(path: Path, device: str | torch.device, dtype: torch.dtype) -> TinyVAE:
    """The tiny autoencoder in a file or folder. Raises CheckpointError."""
    part = examine(path).part()
    assemble(path, {"tiny autoencoder": part}, device, dtype, UNUSED)
    assert isinstance(part.module, TinyVAE)
    return part.module


def describe(path: Path) -> dict[str, Any]:
    """What `pellucid info` says of a file or folder, without reading its weights."""
    found = examine(path)
    part = found.part()
    compare(path, {"tiny autoencoder": part}, UNUSED)
    halves = [half for half in ("encoder", "decoder") if getattr(found.config, half)]
    return {
        "kind": "a tiny autoencoder (TAESD) alone",
        "format": "diffusers" if found.first == 0 else "TAESD",
        "halves": ", ".join(halves),
        "parameters": {half: _size(getattr(part.module, half)) for half in halves},
        "latents": f"{found.config.latent_channels} channels, 1/{found.config.downsample} of the "
        "width and height",
        "types": description.types(found.weights),
    }


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def examine(path: Path) -> Found:
    """What a file or folder holds. Raises CheckpointError if that is no tiny autoencoder."""
    if path.is_dir():
        settings = Settings.open(path / "config.json")
        settings.fixed(FIXED)
        settings.finish((*WIDTHS, "latent_channels", "force_upcast"))
    weights = open_weights(weights_of(path) if path.is_dir() else path)
    shapes = weights.shapes()
    for encoder, decoder, first in LAYOUTS:
        # (latent channels, width, 3, 3), and the other way round.
        last, begin = f"{encoder}{ENCODER_LAST}.weight", f"{decoder}{first}.weight"
        if last not in shapes and begin not in shapes:
            continue
        shape = shapes[last] if last in shapes else shapes[begin][1::-1]
        if len(shape) < 2:
            break
        config = TinyVAEConfig(shape[0], shape[1], last in shapes, begin in shapes)
        return Found(path, weights, config, (encoder, decoder), first)
    raise CheckpointError(
        f"{path} is no tiny autoencoder of the known kind: its keys begin with "
        f"{', '.join(list(weights)[:3])}"
    )


def places(network: nn.Module, prefixes: tuple[str, str], first: int) -> dict[str, Place]:
    """Where the parameters "encoder.layers.N.*" and "decoder.layers.N.*" stand."""
    found = {}
    for name in network.state_dict():
        half, _, number, rest = name.split(".", 3)
        encodes = half == "encoder"
        number = number if encodes else str(int(number) + first)
        found[name] = Place(f"{prefixes[0 if encodes else 1]}{number}.{rest}")
    return found


# ---------------------------------------------------------------- which one belongs to a model


def beside(path: Path, of: VAEConfig) -> Path | None:
    """The published file for this autoencoder that lies beside a model, or in its folder."""
    name = published(of)
    if name is None:
        return None
    folders = (path, path.parent) if path.is_dir() else (path.parent,)
    files = (folder / f"{name}{ending}" for folder in folders for ending in ENDINGS)
    return next((file for file in files if file.is_file()), None)
