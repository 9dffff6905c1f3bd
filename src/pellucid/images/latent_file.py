"""Latents as a file: pictures that were not decoded yet, and what is known about them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pellucid.files import write_tensors

FORMAT = "pellucid latents 1"


def save_latents(
    path: Path, latents: Tensor, about: Mapping[str, str], replace: bool = True
) -> None:
    """Write scaled latents (B, C, h, w), so that they can be decoded later, and what they are.

    replace: as in `files.new_file`.
    """
    tensors = {"latents": latents.detach().cpu().contiguous()}
    write_tensors(path, tensors, {"format": FORMAT, **about}, replace=replace)


def load_latents(path: Path) -> tuple[Tensor, dict[str, str]]:
    """What `save_latents` wrote. ValueError for any other file."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file of latents: there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
            latents = file.get_tensor("latents") if about.get("format") == FORMAT else None
    except SafetensorError as error:
        raise ValueError(f"{path} is not a file of latents ({error})") from error
    if latents is None or latents.ndim != 4 or not latents.is_floating_point():
        raise ValueError(f"{path} is not a file of latents")
    del about["format"]
    return latents, about
