"""Tiny autoencoders on disk: the original files with numbered keys, and diffusers'.

Those of diffusers are a folder with a config.json, or the file of weights in it. The original files
hold one half each, a sequence whose layers are numbered; in the decoder number 0 is a layer without
weights, which diffusers does not count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pellucid.checkpoints import description, families
from pellucid.checkpoints.assembly import Location, Part, build, compare, fill
from pellucid.checkpoints.identify import TINY_VAE
from pellucid.checkpoints.json_config import JsonConfig, class_of
from pellucid.checkpoints.weight_files import weights_of
from pellucid.checkpoints.weights import CheckpointSource, Weights, existing, open_weights
from pellucid.model import Model
from pellucid.safetensors_header import CheckpointError, first_keys
from pellucid.tiny_vae import BLOCKS, TinyVAE, TinyVAEConfig
from pellucid.vae import VAEConfig

# The prefixes of encoder and decoder, and the number of the decoder's first layer: in diffusers' files;
# in files with both originals; in the original files, which differ only in their shapes.
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
class TinyVAEFile:
    """What a file holds: the config, and where its parameters are."""

    path: Path
    weights: Weights
    config: TinyVAEConfig
    prefixes: tuple[str, str]
    first: int

    def part(self) -> Part:
        """The network on the meta device, with the location of each parameter.

        Raises CheckpointError if the keys do not fit.
        """
        network = build(self.path, "tiny autoencoder", TinyVAE, self.config)
        part = Part(network, self.weights, locations(network, self.prefixes, self.first))
        compare(self.path, {"tiny autoencoder": part}, UNUSED)
        return part


def matches(source: CheckpointSource) -> bool:
    """Whether it is a file or folder with a tiny autoencoder, or half of one."""
    if source.path.is_dir():
        return class_of(source.path) == CLASS
    names = [key for key in source.keys if key not in UNUSED]
    return bool(names) and all(KEY.match(name) for name in names)


def load_tiny_vae(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    of: VAEConfig | None = None,
) -> TinyVAE:
    """The tiny autoencoder in `path`: TAESD's own files, or a file or folder of diffusers'.

    of: the config of the autoencoder that it is to imitate. Raises CheckpointError: no such file,
    another kind of file, latents of another kind than `of` has, no decoder although `of` is given.
    """
    kind = "a tiny autoencoder" if of is None else expected(of)
    part = examine(existing(path, kind).path).part()
    fill(part, device, dtype)
    tiny = part.module
    assert isinstance(tiny, TinyVAE)
    if of is not None and tiny.config.latent_channels != of.latent_channels:
        raise CheckpointError(
            f"{path} is for {tiny.config.latent_channels} latent channels, and the model has "
            f"{of.latent_channels}; expected {kind}"
        )
    if of is not None and tiny.decoder is None:
        raise CheckpointError(f"{path} is the encoder alone; expected {kind}")
    return tiny


def tiny_vae_of(model: Model, path: str | Path) -> TinyVAE | None:
    """The tiny autoencoder that is next to the model's file or folder `path`, or in it, under its
    published name, such as taesd_decoder.safetensors; None if there is none."""
    name = families.latent_space(model.vae.config).tiny_vae
    if name is None:
        return None
    path = Path(path)
    folders = (path, path.parent) if path.is_dir() else (path.parent,)
    files = (folder / f"{name}{ending}" for folder in folders for ending in ENDINGS)
    found = next((file for file in files if file.is_file()), None)
    return None if found is None else load_tiny_vae(found, of=model.vae.config)


def describe(source: CheckpointSource) -> dict[str, Any]:
    """What `pellucid info` reports of a file or folder."""
    found = examine(source.path)
    part = found.part()
    halves = [half for half in ("encoder", "decoder") if getattr(found.config, half)]
    return {
        "kind": TINY_VAE,
        "format": "diffusers" if found.first == 0 else "TAESD",
        "halves": ", ".join(halves),
        "parameters": {
            half: sum(p.numel() for p in getattr(part.module, half).parameters()) for half in halves
        },
        "latents": description.shape_of(found.config),
        "types": description.types(found.weights),
    }


def examine(path: Path) -> TinyVAEFile:
    """What a file or folder holds. Raises CheckpointError if that is not a tiny autoencoder."""
    if path.is_dir():
        settings = JsonConfig.open(path / "config.json")
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
        return TinyVAEFile(path, weights, config, (encoder, decoder), first)
    raise CheckpointError(
        f"{path} is not a tiny autoencoder of a known kind: its keys begin with {first_keys(weights)}"
    )


def locations(network: nn.Module, prefixes: tuple[str, str], first: int) -> dict[str, Location]:
    """Where the parameters "encoder.layers.N.*" and "decoder.layers.N.*" are."""
    found = {}
    for name in network.state_dict():
        half, _, number, rest = name.split(".", 3)
        encodes = half == "encoder"
        number = number if encodes else str(int(number) + first)
        found[name] = Location(f"{prefixes[0 if encodes else 1]}{number}.{rest}")
    return found


def expected(of: VAEConfig) -> str:
    """Which tiny autoencoder imitates one with this config, for a message."""
    name = families.latent_space(of).tiny_vae
    kind = f"a tiny autoencoder for {of.latent_channels} latent channels"
    return kind if name is None else f"{kind}, {name}_decoder.safetensors"
