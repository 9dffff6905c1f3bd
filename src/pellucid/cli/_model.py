"""The options of a command that opens a model: which file, on which device, in which number type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid import computing
from pellucid.cli._complete import SHIPPED, completion_of, names_in
from pellucid.diffusion import PREDICTIONS
from pellucid.folders import embedded
from pellucid.plugins import choose
from pellucid.settings import load_settings

if TYPE_CHECKING:
    from pellucid.model import Model


def _in_box(help: str, check: Callable[[Any], object] | None = None, **more: Any) -> Any:
    """An option of the box "Model". check: raises ValueError for a value that no machine takes."""

    def checked(value: Any) -> Any:
        if value is not None and check is not None:
            check(value)
        return value

    if check is not None:
        more["callback"] = checked
    return typer.Option(help=help, rich_help_panel="Model", **more)


def find(field: str, name: str) -> Path:
    """The file that an option names, as `Settings.path_of` finds it."""
    if field == "models" and name == SHIPPED and not Path(name).exists():
        return embedded()
    return load_settings().settings.path_of(field, name)


def default_model() -> Path | None:
    """The model of the settings. None: the one that ships."""
    name = load_settings().settings.model
    return None if name is None else find("models", name)


def named(field: str) -> dict[str, Any]:
    """What an option needs that takes a path, or a name in the folder of the settings."""

    def found(context: typer.Context, value: Path | None) -> Path | None:
        if value is None or context.resilient_parsing:
            return value
        return find(field, str(value))

    return {"callback": found, "autocompletion": names_in(field)}


def _or_default(context: typer.Context, value: Path | None) -> Path | None:
    if context.resilient_parsing:
        return value
    return default_model() if value is None else find("models", str(value))


MODEL_HELP = (
    "A model: a file, a diffusers folder, or a name in the folder of models. Default: that of your "
    "settings, else the small included one."
)
ModelFile = Annotated[
    Path | None,
    _in_box(MODEL_HELP, callback=_or_default, autocompletion=names_in("models")),
]
ModelOrLike = Annotated[Path | None, _in_box(MODEL_HELP, **named("models"))]
"""For a command that has --like; without both it is `default_model`."""
Prediction = Annotated[
    str | None,
    _in_box(
        "What the network predicts, eps or v, if the file does not say it (SD2).",
        check=lambda name: choose(name, PREDICTIONS, "prediction"),
    ),
]
Vae = Annotated[
    Path | None,
    _in_box("A file or folder whose autoencoder is used instead of the model's.", **named("vaes")),
]
TinyVae = Annotated[
    Path | None,
    _in_box(
        "The tiny autoencoder, a file or folder, if it is not next to the model.", **named("vaes")
    ),
]
Device = Annotated[
    str,
    _in_box(
        "Where to compute: cpu, cuda, cuda:1, mps; auto is a GPU if there is one.",
        check=computing.check_device,
        autocompletion=completion_of(lambda: ("auto", "cpu", "cuda", "mps")),
    ),
]
Dtype = Annotated[
    str,
    _in_box(
        "The number type: float32, float16 or bfloat16; `pellucid info` shows what auto chooses.",
        check=computing.dtype_named,
        autocompletion=completion_of(lambda: ("auto", *computing.DTYPES)),
    ),
]
Backend = Annotated[
    str,
    _in_box(
        "How the network is computed: eager, packed, fused, int8, openvino, openvino_int8; `pellucid "
        "info` shows what auto chooses.",
        check=computing.check_backend,
        autocompletion=completion_of(lambda: (*computing.ORDERS, *computing.backends())),
    ),
]
Threads = Annotated[
    int | None,
    _in_box(
        "CPU threads, at least 1. Default: chosen by the size of the model.",
        check=computing.check_threads,
    ),
]
Fast = Annotated[
    bool, typer.Option("--fast", help="Faster, a little less exact.", rich_help_panel="Model")
]
Exact = Annotated[
    bool,
    typer.Option("--exact", help="As exact as float32 is; slower.", rich_help_panel="Model"),
]
LoraFolder = Annotated[
    Path | None,
    typer.Option(
        help="The folder of the LoRAs that <lora:name:weight> in a prompt names. Default: that of "
        "your settings.",
        rich_help_panel="LoRAs and embeddings",
        exists=True,
        file_okay=False,
    ),
]


def computed(dtype: str, backend: str, fast: bool, exact: bool) -> tuple[str, str]:
    """The number type and the backend that --fast and --exact stand for, or those that were given.

    ValueError for two that contradict each other.
    """
    if fast and exact:
        raise ValueError("--fast and --exact cannot be combined")
    short = "--fast" if fast else "--exact"
    if (fast or exact) and backend != "auto":
        raise ValueError(f"{short} chooses the backend; it cannot be combined with --backend")
    if exact and dtype != "auto":
        raise ValueError("--exact chooses the number type; it cannot be combined with --dtype")
    return ("float32" if exact else dtype), ("fast" if fast else "eager" if exact else backend)


def open_parts(path: Path | None, vae: Path | None = None) -> Model:
    """The model in `path`, on the CPU, for a command that never runs its network.

    What the network predicts does not matter then, and the file need not say it. vae: as in
    `opening.open_model`.
    """
    from pellucid import checkpoints

    try:
        return checkpoints.load(path, vae=vae)
    except checkpoints.UnknownPrediction:
        return checkpoints.load(path, prediction="eps", vae=vae)
