"""Models on disk, and the smaller things that stand next to them: LoRAs, words, autoencoders, GANs.

This is the facade, for the rest of the program; nothing inside of the package imports it.
"""

from pellucid.checkpoints.contents import Turns
from pellucid.checkpoints.embedding_files import load_embeddings
from pellucid.checkpoints.gan_files import load_gan, save_gan
from pellucid.checkpoints.lora.changes import load_lora, save_lora
from pellucid.checkpoints.lora.description import describe_lora
from pellucid.checkpoints.merging import MergeRecipe, merge
from pellucid.checkpoints.models import (
    describe,
    load,
    load_upscaler,
    save,
    type_of,
    writable_formats,
    writes_folder,
)
from pellucid.checkpoints.tiny_vae_files import load_tiny_vae, tiny_vae_of
from pellucid.checkpoints.vae_files import load_vae
from pellucid.folders import embedded
from pellucid.safetensors_header import CheckpointError, UnknownPrediction, holds_gan
