"""From a model to the tensors of a file, and whether a layout can hold the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.backbones.unet import UNetConfig
from pellucid.checkpoints.assembly import Location
from pellucid.checkpoints.header import CheckpointError
from pellucid.model import Model
from pellucid.tokenizer import BOS, EOS

EXTRAS = {
    "vision": "the vision tower of CLIP",
    "tiny_vae": "the tiny autoencoder",
    "upscaler": "the super-resolution stage",
    "lexicon": "the list of the words that it has learned",
}


def gather(
    path: Path,
    parts: Mapping[str, tuple[nn.Module, Mapping[str, Location]]],
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """The tensors of a file: every parameter at its location. `dtype` None keeps the weights' own.

    Raises CheckpointError for a weight that is not finite, or is no longer finite as `dtype`.
    """
    stored: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for what, (module, locations) in parts.items():
        for name, tensor in module.state_dict().items():
            location = locations[name]
            cast = dtype is not None and tensor.is_floating_point()
            weight = tensor.detach().cpu().to(dtype if cast else tensor.dtype)
            if weight.is_floating_point() and not weight.isfinite().all():
                raise CheckpointError(
                    f"{what}.{name} has values that are not finite in {weight.dtype}; "
                    f"{path} was not written"
                )
            if location.layout == "third":
                thirds.setdefault(location.key, {})[location.part] = weight
                continue
            if location.layout == "transposed":
                weight = weight.T
            shape = location.shape(tuple(tensor.shape))
            stored[location.key] = weight.reshape(shape).contiguous()
    for key, three in thirds.items():
        stored[key] = torch.cat([three[i] for i in range(3)])
    return stored


def extras_of(model: Model) -> tuple[str, ...]:
    """The parts of a model that only the native format can hold, in words."""
    return tuple(what for part, what in EXTRAS.items() if getattr(model, part) is not None)


def check_has_place(path: Path, layout: str, model: Model, tokenizer: bool) -> None:
    """Raises CheckpointError that names everything in a model that only the native format can hold.

    tokenizer: whether the layout stores a tokenizer, which must be of CLIP's kind.
    """
    unet, vae = model.config, model.vae.config
    own = {
        "the map that its U-Net draws from the text": getattr(unet, "map_channels", 0) > 0,
        "FiLM in its U-Net": getattr(unet, "film", False),
        "patches of latents in its U-Net": isinstance(unet, UNetConfig) and unet.patch_size > 1,
        f"patches of {vae.patch_size}x{vae.patch_size} pixels in its autoencoder": (
            vae.patch_size > 1
        ),
        "the linear shortcut of its autoencoder": vae.shortcut,
        "the sum of the words next to the pooled text": model.text_encoding.pooled == "words",
        "its tokenizer, which is not of CLIP's kind": tokenizer
        and not {BOS, EOS} <= model.tokenizer.table()[0].keys(),
        f"the words {', '.join(model.tokenizer.words)} of its tokenizer": not tokenizer
        and bool(model.tokenizer.words),
    }
    if found := [what for what, has in own.items() if has]:
        raise CheckpointError(
            f"{path} was not written: {layout} has no place for {'; '.join(found)}"
        )


def same_when_read(path: Path, layout: str, pairs: Iterable[tuple[str, Any, Any]]) -> None:
    """Raises CheckpointError if anything of a model would be read back as something else.

    pairs: a name, what the model has, and what would be read. Of two configs the error names the
    first field that differs.
    """
    for what, has, read in pairs:
        if has == read:
            continue
        if dataclasses.is_dataclass(has) and type(has) is type(read):
            for field in dataclasses.fields(has):
                mine, other = getattr(has, field.name), getattr(read, field.name)
                if mine != other:
                    what, has, read = f"{what}: {field.name}", mine, other
                    break
        raise CheckpointError(
            f"{path} was not written: {layout} has no place for {what} {has}, which would be read "
            f"as {read}"
        )
