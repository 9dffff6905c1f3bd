"""Models on disk: one file in formats/ for each format, chosen by what a file holds and not by its
name.

A format is a module with `matches(path) -> bool`, `read(path, device, dtype, prediction, vae) ->
Model`, `describe(path, prediction) -> dict`, without reading the weights, and, if it can be written,
`write(model, path, dtype)`, which gives what had no place there, in words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pellucid import plugins
from pellucid.checkpoints import (
    configs,
    description,
    embedding_files,
    families,
    gan_files,
    tiny_vae_files,
    vae_files,
)
from pellucid.checkpoints.formats import ldm
from pellucid.checkpoints.header import CheckpointError, first_keys
from pellucid.checkpoints.lora import changes as lora_changes
from pellucid.checkpoints.lora.description import describe as describe_lora_file
from pellucid.checkpoints.lora.file import examine
from pellucid.checkpoints.weights import is_pickle, open_pickle, open_weights
from pellucid.diffusion import PREDICTIONS
from pellucid.gan import GAN
from pellucid.lora import Lora
from pellucid.model import Model
from pellucid.plugins import choose
from pellucid.textual_inversion import Embedding
from pellucid.tiny_vae import TinyVAE, wanted
from pellucid.vae import VAE, VAEConfig


def load(
    path: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = torch.float32,
    prediction: str | None = None,
    vae: str | Path | None = None,
) -> Model:
    """The model in the file or folder `path`, on `device`, its weights as `dtype`, in eval mode.

    path: None is the model that ships with the package. dtype: None leaves every weight its own.
    prediction: what the network predicts, one of `diffusion.PREDICTIONS`, where the file does not
    say it; None asks the file. vae: a file or folder whose autoencoder the model gets, in place of
    its own or because it has none. Weights that are of `dtype` already stay in the file until they
    are used, so it must not be written over.

    Nothing in the file is run. Raises CheckpointError: no such file, truncated, of another kind,
    keys that are missing, unknown or of the wrong shape, no autoencoder, one of other latents;
    UnknownPrediction.
    """
    path = _exists(embedded() if path is None else path, "a checkpoint file")
    form = format_of(path)
    if prediction is not None:
        choose(prediction, PREDICTIONS, "prediction")
    if vae is not None:
        vae = _exists(vae, "an autoencoder")
    model: Model = form.read(path, device, dtype, prediction, vae)
    return model


def _exists(path: str | Path, wanted: str) -> Path:
    if not Path(path).exists():
        raise CheckpointError(f"{path} does not exist; {wanted} is wanted")
    return Path(path)


def format_of(path: Path) -> Any:
    """The module that reads `path`. Raises CheckpointError that says what it is instead."""
    for form in plugins.discover("pellucid.checkpoints.formats").values():
        if form.matches(path):
            return form
    if path.is_dir():
        kind = configs.class_of(path)
        told = "" if kind is None else f", but one part of a model, {kind[:80]}"
        raise CheckpointError(
            f"{path} is a folder, and not one of diffusers' with a model_index.json{told}; such a "
            "folder or a .safetensors file is wanted"
        )
    if holds_gan(path):
        raise CheckpointError(
            f"{path} is a GAN, which draws in one step and has no noise to take away; a diffusion "
            "model is wanted (`pellucid generate` and `pellucid info` take both)"
        )
    weights = open_weights(path)  # says what is wrong if it is no file of weights at all
    what = families.what_is(weights)
    if what is not None:
        raise CheckpointError(f"{path} is {families.not_a_model(what)}")
    raise CheckpointError(
        f"{path} has no 'pellucid' entry in its metadata, and its keys are no known model's: they "
        f"begin with {first_keys(weights)}"
    )


def describe(path: str | Path, prediction: str | None = None) -> dict[str, Any]:
    """What can be said of the model in `path` without reading its weights.

    Something else that is known is described too, under "kind": an autoencoder, a LoRA, words of
    textual inversion, a GAN, ... Raises CheckpointError for what cannot be read.
    """
    path = _exists(path, "a checkpoint file")
    if is_tiny_vae(path):
        return tiny_vae_files.describe(path)
    if holds_gan(path):
        gan: dict[str, Any] = gan_files.describe(path)
        return gan
    if vae_files.matches(path):
        return vae_files.describe(path)
    forms = plugins.discover("pellucid.checkpoints.formats").values()
    form = next((form for form in forms if form.matches(path)), None)
    if path.is_file() and (form is None or is_pickle(path)):
        facts = _other(path)
        if facts is not None:
            return facts
    told: dict[str, Any] = format_of(path).describe(path, prediction)
    return {"name": path.name} | told


def _other(path: Path) -> dict[str, Any] | None:
    """The facts of a file that is known and no model; None for any other. Raises CheckpointError."""
    content = open_pickle(path) if is_pickle(path) else None
    if isinstance(content, dict) and "string_to_param" in content:
        return embedding_files.describe(path)
    weights = open_weights(path)
    if any(key.removeprefix(vae_files.NEST).startswith((ldm.UNET, ldm.EMA)) for key in weights):
        return None
    what = families.what_is(weights)
    if what is None and embedding_files.seems(weights):
        return embedding_files.describe(path)
    if what is None:
        return None
    if what == "a LoRA":
        return {"kind": what} | describe_lora_file(examine(path))
    if what == embedding_files.KIND:
        return embedding_files.describe(path)
    if what == "a VAE alone":
        return vae_files.describe(path)
    return {
        "kind": what,
        "parameters": {"all": sum(math.prod(s.shape) for s in weights.values())},
        "types": description.types(weights),
        "keys": len(weights),
    }


def type_of(path: str | Path) -> torch.dtype:
    """The type of most tensors of a model's file or folder, from its header."""
    commonest: torch.dtype = getattr(torch, next(iter(describe(path)["types"])))
    return commonest


def load_vae(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    like: VAEConfig | None = None,
) -> VAE:
    """The autoencoder in a file or folder of its own, or out of a whole model's.

    like: whose scale and shift of the latents it has where `path` is a file, which does not say
    them. Raises CheckpointError: no such file, no whole autoencoder in it.
    """
    return vae_files.read(_exists(path, "an autoencoder"), device, dtype, like)


def is_tiny_vae(path: str | Path) -> bool:
    """Whether `path` is a file or folder with a tiny autoencoder, or half of one."""
    return tiny_vae_files.matches(Path(path))


def load_tiny_vae(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    of: VAEConfig | None = None,
) -> TinyVAE:
    """The tiny autoencoder in `path`: TAESD's own files, or a file or folder of diffusers'.

    of: the config of the autoencoder that it is to imitate. Raises CheckpointError: no such file,
    another kind of file, latents of another kind than `of` has, no decoder where `of` is given.
    """
    asked = "a tiny autoencoder" if of is None else wanted(of)
    path = _exists(path, asked)
    tiny = tiny_vae_files.read(path, device, dtype)
    if of is not None and tiny.config.latent_channels != of.latent_channels:
        raise CheckpointError(
            f"{path} is for {tiny.config.latent_channels} latent channels, and the model has "
            f"{of.latent_channels}; {asked} is wanted"
        )
    if of is not None and tiny.decoder is None:
        raise CheckpointError(f"{path} is the encoder alone; {asked} is wanted")
    return tiny


def tiny_vae_of(model: Model, path: str | Path) -> TinyVAE | None:
    """The tiny autoencoder that lies beside the model's file or folder `path`, or in it, under its
    published name, such as taesd_decoder.safetensors; None if there is none."""
    found = tiny_vae_files.beside(Path(path), model.vae.config)
    return None if found is None else load_tiny_vae(found, of=model.vae.config)


def load_lora(path: str | Path, model: Model) -> Lora:
    """The LoRA in a file, for `model`; `lora.attach` puts it on. Its tensors stay in the file until
    they are used, so it must not be written over.

    Raises CheckpointError: no such file, no LoRA, an incomplete one, one of another family.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; a LoRA's weights are wanted")
    return lora_changes.read(path, model)


def save_lora(
    lora: Lora, model: Model, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a LoRA of `model` as one safetensors file with kohya's keys, which A1111 and diffusers
    read too. Raises CheckpointError if it is none of the plain kind or cannot be written."""
    lora_changes.write(lora, model, Path(path), metadata or {})


def describe_lora(path: str | Path) -> dict[str, Any]:
    """What can be said of a LoRA from its file alone. Raises CheckpointError if it is none."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; a LoRA's weights are wanted")
    return describe_lora_file(examine(path))


def load_embedding(path: str | Path, model: Model) -> tuple[Embedding, ...]:
    """The words in a file of textual inversion; `textual_inversion.with_words` gives them to `model`.

    Raises CheckpointError: no such file, no embedding, one of another family.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; a textual-inversion embedding is wanted")
    return embedding_files.read(path, model)


def holds_gan(path: str | Path) -> bool:
    """Whether `path` is a GAN's file, which `load_gan` reads and `load` does not."""
    return gan_files.matches(Path(path))


def load_gan(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> GAN:
    """The GAN in the file `path`, on `device`, in eval mode.

    Raises CheckpointError: no such file, a diffusion model or another thing, keys that do not fit.
    """
    return gan_files.read(Path(path), device, dtype)


def save_gan(gan: GAN, path: str | Path) -> None:
    """Write `gan` to `path`, whole or not at all. Raises CheckpointError if it cannot be."""
    gan_files.write(gan, Path(path))


def save(
    model: Model, path: str | Path, dtype: torch.dtype | None = None, to: str = "native"
) -> tuple[str, ...]:
    """Write `model` to `path` in the format `to`; what had no place there is told in words.

    dtype: None keeps the weights as they are. The file or folder appears whole or not at all.
    Raises CheckpointError if it cannot be written, or would be read as another model; ValueError
    for an unknown format.
    """
    forms = plugins.discover("pellucid.checkpoints.formats")
    written = [name for name, form in forms.items() if hasattr(form, "write")]
    left_out: tuple[str, ...] = forms[choose(to, written, "format")].write(model, Path(path), dtype)
    return left_out


def embedded() -> Path:
    """Where the model that ships with the package is."""
    return Path(__file__).parents[1] / "weights" / "emoji.safetensors"
