"""``pellucid train``: a LoRA of any model; the parts of the small model, from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pellucid.cli._app import app

KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path",
    str: "text",
}


def _yes_or_no(text: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise ValueError(f"{text!r} is neither true nor false")
    return known[text.lower()]


def _options(kind: type[Any], settings: list[str], resume: bool) -> Any:
    """A training options dataclass from "name=value" words."""
    import typing

    fields = typing.get_type_hints(kind)
    values: dict[str, Any] = {"resume": resume}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in fields:
            known = ", ".join(field for field in fields if field != "resume")
            raise ValueError(f"{setting!r}: NAME=VALUE is wanted, NAME one of {known}")
        try:
            kind_of = fields[name]  # bool("False") would be True
            values[name] = _yes_or_no(text) if kind_of is bool else kind_of(text)
        except ValueError:
            raise ValueError(f"{setting!r}: {name} is {KINDS[fields[name]]}") from None
    return kind(**values)


def _told(kind: type[Any]) -> str:
    """Every setting with its default, and what its docstring in the source says of it."""
    import ast
    import inspect
    import textwrap
    from itertools import pairwise

    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    lines = []
    for node, after in pairwise([*tree.body, ast.Pass()]):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        name, said = node.target.id, ""
        if name == "resume":  # which is --resume
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            said = " ".join(str(after.value.value).split())
        lines.append(f"{name}={getattr(kind, name)}")
        lines += textwrap.wrap(said, 92, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


@app.command()
def train(
    what: Annotated[
        str, typer.Argument(help="lora, vae, clip, diffusion, gan, classifier or pack.")
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Options as NAME=VALUE, such as steps=1000.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the last run was stopped.")
    ] = False,
    list_settings: Annotated[
        bool, typer.Option("--settings", help="List what can be set, with its defaults, and leave.")
    ] = False,
) -> None:
    """Train a LoRA, a GAN, or a part of the small model, or pack the parts into one file."""
    from pellucid.checkpoints import UnknownPrediction
    from pellucid.plugins import choose

    kinds = {
        "lora": "Lora",
        "vae": "VAE",
        "clip": "CLIP",
        "diffusion": "Diffusion",
        "gan": "GAN",
        "classifier": "Classifier",
        "pack": "Pack",
    }
    choose(what, kinds, "training")
    import importlib

    package = "evaluate" if what == "classifier" else "train"
    module = importlib.import_module(f"pellucid.{package}.{what}")
    kind = getattr(module, kinds[what] + "Options")
    if list_settings:
        typer.echo(_told(kind))
        return
    options = _options(kind, settings or [], resume)
    try:
        typer.echo(module.train(options))
    except UnknownPrediction as error:  # it names the flag of the other commands
        raise ValueError(str(error).replace("--prediction ", "prediction=")) from error
