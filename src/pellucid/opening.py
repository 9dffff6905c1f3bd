"""A model from its file to its device, in a number type that suits both, with its tiny autoencoder."""

from __future__ import annotations

from pathlib import Path

import torch

from pellucid import checkpoints
from pellucid.computing import check_threads
from pellucid.model import Model
from pellucid.runtime.devices import choose_device
from pellucid.runtime.precision import choose_dtype
from pellucid.runtime.threads import threads_for


def open_model(
    path: Path | None,
    *,
    prediction: str | None = None,
    vae: Path | None = None,
    tiny_vae: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    in_turns: checkpoints.Turns = False,
) -> Model:
    """The model in `path`, None: the one that ships.

    vae: the autoencoder that it gets. tiny_vae: a tiny autoencoder; None: one next to the model.
    threads: of this process from now on; None: as many as suit the model. in_turns: as in
    `checkpoints.load`.
    Raises ValueError: a device that is not there, an unknown type, a file that is no model.
    """
    if threads is not None:
        check_threads(threads)
    path = checkpoints.embedded() if path is None else path
    where = choose_device(device)
    # On a CPU the file's type changes nothing, and its header need not be read twice.
    stored = torch.float32 if where.type == "cpu" else checkpoints.type_of(path)
    choice = choose_dtype(where, dtype, stored)
    if threads is not None:
        torch.set_num_threads(threads)
    # Text is read once, and rounding in it changes the whole picture: "a fox" by 28 dB.
    text = torch.float32 if where.type == "cpu" and dtype == "auto" else None
    model = checkpoints.load(path, where, choice.dtype, prediction, vae, text, in_turns)
    if threads is None:
        torch.set_num_threads(threads_for(model))
    if tiny_vae is not None:
        model.tiny_vae = checkpoints.load_tiny_vae(tiny_vae, where, choice.dtype, model.vae.config)
    elif model.tiny_vae is None:
        model.tiny_vae = checkpoints.tiny_vae_of(model, path)
        if model.tiny_vae is not None:
            model.tiny_vae.to(where, choice.dtype)
    return model
