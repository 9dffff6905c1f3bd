"""Models on disk: loaded, described and saved, in any of the formats in formats/.

A format is a module with `matches(source) -> bool`, `examine(source, prediction) -> Contents` and, if
it can be written, `write(model, path, dtype)`, which returns what had no place there, in words. A
file's format is chosen by what it holds and not by its name.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, cast

import torch

from pellucid import cascade, plugins
from pellucid.checkpoints import (
    description,
    embedding_files,
    formats,
    gan_files,
    merge_record,
    tiny_vae_files,
    upscaler_files,
    vae_files,
)
from pellucid.checkpoints.assembly import fill, size
from pellucid.checkpoints.contents import Contents, Turns
from pellucid.checkpoints.identify import not_a_model, what_is
from pellucid.checkpoints.json_config import class_of
from pellucid.checkpoints.lora import description as lora_description
from pellucid.checkpoints.weights import CheckpointSource, Weights, existing
from pellucid.diffusion import PREDICTIONS
from pellucid.folders import embedded
from pellucid.hires import DIFFUSION
from pellucid.model import Model
from pellucid.plugins import choose
from pellucid.safetensors_header import CheckpointError, first_keys
from pellucid.upscale import DiffusionUpscaler, Upscaler

# Files and folders that are not models, each with `matches(source)` and `describe(source)`.
OTHERS: tuple[Any, ...] = (
    *(tiny_vae_files, gan_files, vae_files, upscaler_files, embedding_files, lora_description),
)


def load(
    path: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = torch.float32,
    prediction: str | None = None,
    vae: str | Path | None = None,
    text_dtype: torch.dtype | None = None,
    in_turns: Turns = False,
) -> Model:
    """The model in the file or folder `path`, on `device`, its weights as `dtype`, in eval mode.

    path: None is the included model. dtype: None keeps each weight's own type.
    prediction: what the network predicts, one of `diffusion.PREDICTIONS`, if the file does not say
    it; None: as the file says. vae: a file or folder whose autoencoder the model gets, in place of
    its own or because it has none. text_dtype: that of the text towers; None: `dtype`. in_turns: where
    memory is too short for all parts at once, each is read when `Runtime` needs it; "text": as
    `contents.Turns` says. Weights that are of `dtype` already stay in the file until they are used, so
    it must not be overwritten.

    Nothing in the file is run. Raises CheckpointError: no such file, truncated, of another kind,
    keys that are missing, unknown or of the wrong shape, no autoencoder, one with other latents;
    UnknownPrediction. Raises DoesNotFit, before weights are read, if there is not enough memory.
    """
    source = existing(embedded() if path is None else path, "a checkpoint")
    contents = examine(source, prediction)
    if vae is not None:
        contents = contents.with_vae(existing(vae, "an autoencoder").path)
    return contents.read(device, dtype, text_dtype, in_turns)


def load_upscaler(
    path: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Upscaler:
    """The upscaler in `path`: a file of the ESRGAN family, or a model with a second stage.

    path: None is the included model. Raises CheckpointError: no such file, another
    kind, keys that are missing, unknown or of the wrong shape.
    """
    source = existing(embedded() if path is None else path, "an upscaler")
    if _format(source) is not None:
        stage = examine(source, None).parts.get("upscaler")
        if stage is None:
            raise CheckpointError(
                f"{source.path} is a model without a second stage, and so is not an upscaler"
            )
        fill(stage, device, dtype)
        name = DIFFUSION if path is None else source.path.stem
        return DiffusionUpscaler(cast(cascade.SuperResolution, stage.module), name)
    return upscaler_files.load_upscaler(source.path, device, dtype)


def examine(source: CheckpointSource, prediction: str | None) -> Contents:
    """What a checkpoint holds; prediction: as in `load`. Raises CheckpointError."""
    form = _format(source)
    if form is None:
        raise CheckpointError(f"{source.path} {_instead_of_model(source)}")
    if prediction is not None:
        choose(prediction, PREDICTIONS, "prediction")
    contents: Contents = form.examine(source, prediction)
    return contents


def _format(source: CheckpointSource) -> Any:
    """The module that reads a file or folder; None if no format matches."""
    known = plugins.discover(formats.__name__).values()
    return next((form for form in known if form.matches(source)), None)


def _instead_of_model(source: CheckpointSource) -> str:
    """What a file or folder is that no format matches. Raises CheckpointError if it is damaged."""
    if source.path.is_dir():
        kind = class_of(source.path)
        part = "" if kind is None else f", but one part of a model, {kind[:80]}"
        return (
            f"is a folder, and not one of diffusers' with a model_index.json{part}; expected such a "
            "folder or a .safetensors file"
        )
    if gan_files.matches(source):
        return (
            "is a GAN, which draws in one step and has no noise to remove; expected a diffusion "
            "model (`pellucid generate` and `pellucid info` take both)"
        )
    weights = source.weights  # its error says what is wrong if it is not a file of weights
    what = what_is(weights)
    if what is not None:
        return f"is {not_a_model(what)}"
    kind = (
        "is a pickle (torch.save)" if weights.pickled else "has no 'pellucid' entry in its metadata"
    )
    return f"{kind}, and its keys are not a known model's: they begin with {first_keys(weights)}"


# ---------------------------------------------------------------- describing


def describe(path: str | Path, prediction: str | None = None) -> dict[str, Any]:
    """What can be said of the model in `path` without reading its weights.

    Other known things are described too, under "kind": an autoencoder, a LoRA, an embedding, a GAN,
    ... Raises CheckpointError for what cannot be read.
    """
    source = existing(path, "a checkpoint")
    if _format(source) is not None:
        return _describe_model(examine(source, prediction)) | merge_record.said(source)
    for other in OTHERS:
        if other.matches(source):
            facts: dict[str, Any] = other.describe(source)
            return facts
    if (what := what_is(source.keys)) is not None:
        return _summary(what, source.weights)
    raise CheckpointError(f"{source.path} {_instead_of_model(source)}")


def _summary(what: str, weights: Weights) -> dict[str, Any]:
    """The facts of a file that is known and not supported."""
    return {
        "kind": what,
        "parameters": {"all": sum(math.prod(s.shape) for s in weights.values())},
        "types": description.types(weights),
        "keys": len(weights),
    }


def _describe_model(contents: Contents) -> dict[str, Any]:
    contents.check()
    stored = {id(part.weights): part.weights for part in contents.parts.values()}
    unknown, vae = contents.prediction is None, contents.vae
    tokenizer = contents.tokenizer
    return {
        "name": contents.name,
        "format": contents.form,
        "family": contents.title,
        "parameters": {name: size(part) for name, part in contents.parts.items()},
        "types": description.types(*stored.values()),
        "prediction": (
            "not in the file: prediction must be given, eps or v"
            if unknown
            else contents.prediction
        ),
        "schedule": description.schedule_facts(contents.schedule),
        "defaults": (
            "depend on the prediction" if unknown else dataclasses.asdict(contents.defaults)
        ),
        "latents": (
            f"{contents.latent_channels} channels; no autoencoder is in it: vae must be given"
            if vae is None
            else description.latents(vae)
        ),
        "prompt": f"chunks of {tokenizer.context_length - 2} tokens of {tokenizer.vocab_size}",
        "unused keys": list(contents.unused),
        **contents.facts,
    }


def type_of(path: str | Path) -> torch.dtype:
    """The type of most tensors of a model's file or folder, from its header."""
    commonest: torch.dtype = getattr(torch, next(iter(describe(path)["types"])))
    return commonest


# ---------------------------------------------------------------- saving


def save(
    model: Model, path: str | Path, dtype: torch.dtype | None = None, to: str = "native"
) -> tuple[str, ...]:
    """Write `model` to `path` in the format `to`. Returns what had no place there, in words.

    dtype: None keeps the weights as they are. The file or folder appears whole or not at all.
    Raises CheckpointError if it cannot be written, or would be read as another model; ValueError
    for an unknown format.
    """
    forms = plugins.discover(formats.__name__)
    form = forms[choose(to, writable_formats(), "format")]
    left_out: tuple[str, ...] = form.write(model, Path(path), dtype)
    return left_out


def writable_formats() -> tuple[str, ...]:
    """The names of the formats that `save` can write."""
    forms = plugins.discover(formats.__name__)
    return tuple(name for name, form in forms.items() if hasattr(form, "write"))


def writes_folder(to: str) -> bool:
    """Whether `save` writes a folder in this format. ValueError for an unknown one."""
    form = plugins.discover(formats.__name__)[choose(to, writable_formats(), "format")]
    return getattr(form, "WRITES_FOLDER", False)
