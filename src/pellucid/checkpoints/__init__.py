"""Models on disk, and the smaller things that stand next to them: LoRAs, words, autoencoders, GANs.

This is the facade, for the rest of the program; nothing inside of the package imports it.
"""

from pellucid.checkpoints.header import CheckpointError, UnknownPrediction
from pellucid.checkpoints.models import (
    describe,
    describe_lora,
    embedded,
    holds_gan,
    load,
    load_embeddings,
    load_gan,
    load_lora,
    load_tiny_vae,
    load_vae,
    save,
    save_gan,
    save_lora,
    tiny_vae_of,
    type_of,
    writable_formats,
    writes_folder,
)

__all__ = [
    "CheckpointError",
    "UnknownPrediction",
    "describe",
    "describe_lora",
    "embedded",
    "holds_gan",
    "load",
    "load_embeddings",
    "load_gan",
    "load_lora",
    "load_tiny_vae",
    "load_vae",
    "save",
    "save_gan",
    "save_lora",
    "tiny_vae_of",
    "type_of",
    "writable_formats",
    "writes_folder",
]
