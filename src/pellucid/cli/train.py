"""``pellucid train``: a LoRA of any model; the parts of a small model, from nothing."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import textwrap
import typing
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from pellucid import messages
from pellucid.cli._app import app, show, show_path
from pellucid.cli._bar import show_progress
from pellucid.cli._files import check_out

KINDS = {**messages.KINDS, Path: "a path"}

LOOPS = {
    "lora": ("pellucid.train.lora", "LoraOptions"),
    "vae": ("pellucid.train.vae", "VAEOptions"),
    "clip": ("pellucid.train.clip", "CLIPOptions"),
    "diffusion": ("pellucid.train.diffusion", "DiffusionOptions"),
    "decoder": ("pellucid.train.decoder", "DecoderOptions"),
    "pairs": ("pellucid.train.pairs", "PairsOptions"),
    "upscaler": ("pellucid.train.upscaler", "UpscalerOptions"),
    "gan": ("pellucid.train.gan", "GANOptions"),
    "classifier": ("pellucid.evaluate.classifier", "ClassifierOptions"),
    "pack": ("pellucid.train.pack", "PackOptions"),
}
"""Name -> the module of the loop and its options."""


def _options(kind: type[Any], settings: list[str], resume: bool) -> Any:
    """A training options dataclass from "name=value" words."""
    types = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    values: dict[str, Any] = {"resume": resume}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in names:
            known = ", ".join(name for name in names if name != "resume")
            raise ValueError(f"{setting!r} must be NAME=VALUE, where NAME is one of {known}")
        try:
            values[name] = TypeAdapter(types[name]).validate_python(text)
        except ValidationError:
            raise ValueError(f"{setting!r}: {name} must be {KINDS[types[name]]}") from None
    return kind(**values)


def _help(kind: type[Any]) -> str:
    """Every setting with its default and its help."""
    lines = []
    for field in sorted(dataclasses.fields(kind), key=lambda field: bool(field.kw_only)):
        if field.name == "resume":  # which is --resume
            continue
        lines.append(f"{field.name}={field.default}")
        text = field.metadata["help"]
        lines += textwrap.wrap(text, 92, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


@app.command()
def train(
    what: Annotated[str, typer.Argument(help=f"{', '.join(LOOPS)}.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Settings as NAME=VALUE, such as steps=1000.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue where the last run was stopped.")
    ] = False,
    list_settings: Annotated[
        bool, typer.Option("--settings", help="List the settings with their defaults, and exit.")
    ] = False,
    recipe: Annotated[
        str, typer.Option(help="The design of the model, a file of pellucid/recipes.")
    ] = "emoji",
) -> None:
    """Train a LoRA, a GAN, or a part of a small model, or pack the parts into one file."""
    from pellucid.checkpoints import UnknownPrediction
    from pellucid.plugins import choose, discover

    module_name, options_name = LOOPS[choose(what, LOOPS, "training")]
    module = importlib.import_module(module_name)
    kind = getattr(module, options_name)
    if list_settings:
        show(_help(kind))
        return
    recipes = discover("pellucid.recipes")
    design = recipes[choose(recipe, recipes, "recipe")].RECIPE
    options = _options(kind, settings or [], resume)
    check_out(options.out, not kind.out.suffix, "out")
    given = {"options": options, "recipe": design, "say": show_progress}
    taken = inspect.signature(module.train).parameters
    try:
        show_path(module.train(**{name: given[name] for name in taken}))
    except UnknownPrediction as error:
        # Settings are written as the fields are, prediction=v, and not as options.
        raise ValueError(str(error)) from error
