"""How a command opens a model: which file, on which device, in which number type."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pellucid.model import Model


def _in_box(help: str) -> Any:
    return typer.Option(help=help, rich_help_panel="Model")


ModelFile = Annotated[
    Path | None, _in_box("A model file; without it the small model that ships with Pellucid.")
]
Prediction = Annotated[
    str | None,
    _in_box("What the network predicts, eps or v, if the file does not say it (SD2)."),
]
Vae = Annotated[
    Path | None, _in_box("A file or folder whose autoencoder is used instead of the model's.")
]
TinyVae = Annotated[
    Path | None,
    _in_box("The tiny autoencoder, a file or folder, if it is not next to the model."),
]
Device = Annotated[str, _in_box("cpu, cuda, cuda:1, mps; auto is a GPU if there is one.")]
Dtype = Annotated[
    str, _in_box("float32, float16 or bfloat16; `pellucid info` shows what auto chooses.")
]
LoraFolder = Annotated[
    Path | None,
    typer.Option(
        help="The folder of the LoRAs that <lora:name:weight> in a prompt names.",
        rich_help_panel="On the model",
        exists=True,
        file_okay=False,
    ),
]

# The types as people name them, and as torch does.
SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def open_model(
    path: Path | None,
    *,
    prediction: str | None = None,
    vae: Path | None = None,
    tiny_vae: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> Model:
    """The model in `path`, None: the one that ships.

    vae: the autoencoder that it gets. tiny_vae: a tiny autoencoder; None: one next to the model.
    """
    import torch

    from pellucid import checkpoints
    from pellucid.runtime.devices import choose_device
    from pellucid.runtime.precision import choose_dtype

    path = checkpoints.embedded() if path is None else path
    where = choose_device(device)
    # On a CPU the file's type changes nothing, and its header need not be read twice.
    stored = torch.float32 if where.type == "cpu" else checkpoints.type_of(path)
    choice = choose_dtype(where, SHORT.get(dtype, dtype), stored)
    model = checkpoints.load(path, where, choice.dtype, prediction, vae)
    if tiny_vae is not None:
        model.tiny_vae = checkpoints.load_tiny_vae(tiny_vae, where, choice.dtype, model.vae.config)
    elif model.tiny_vae is None:
        model.tiny_vae = checkpoints.tiny_vae_of(model, path)
        if model.tiny_vae is not None:
            model.tiny_vae.to(where, choice.dtype)
    return model


def open_parts(path: Path | None, vae: Path | None = None) -> Model:
    """The model in `path`, on the CPU, for a command that never runs its network.

    What the network predicts does not matter then, and the file need not say it. vae: as in
    `open_model`.
    """
    from pellucid import checkpoints

    try:
        return checkpoints.load(path, vae=vae)
    except checkpoints.UnknownPrediction:
        return checkpoints.load(path, prediction="eps", vae=vae)
