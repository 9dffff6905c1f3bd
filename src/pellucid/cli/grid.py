"""``pellucid grid``: one picture for each pair of settings, and all of them in a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli._app import app, report, show_json, show_path
from pellucid.cli._draw import DrawOptions, draw_job
from pellucid.cli._files import Output
from pellucid.cli._jobs import DrawJob, PictureIndex, sentence_of
from pellucid.cli._like import Like, ModelFiles, PictureRecord, read_like, with_named, with_settings
from pellucid.cli._model import Device, Dtype, LoraFolder, ModelOrLike, Prediction, Vae
from pellucid.cli._options import RequestOption, options_of, repeats, takes_request
from pellucid.plugins import nearest
from pellucid.request import Request
from pellucid.safetensors_header import holds_gan

if TYPE_CHECKING:
    from pellucid.model import Model

MOST = 1000  # cells
SHOWN = 5  # names that a message lists
AXIS = "such as steps=10,20,30; values that have commas are separated by semicolons"


@dataclass(frozen=True)
class GridAxis:
    """A setting that changes along a side of the table."""

    name: str
    texts: tuple[str, ...]
    fields: tuple[dict[str, Any], ...]
    """What each value sets in the request."""

    @property
    def labels(self) -> list[str]:
        return [f"{self.name} {text}" for text in self.texts]


@app.command()
@takes_request()
def grid(
    asked: dict[str, Any],
    x: Annotated[
        str, typer.Option("--x", metavar="NAME=VALUES", help=f"From left to right, {AXIS}.")
    ],
    y: Annotated[
        str | None, typer.Option("--y", metavar="NAME=VALUES", help="From top to bottom.")
    ] = None,
    like: Like = None,
    model: ModelOrLike = None,
    vae: Vae = None,
    prediction: Prediction = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    lora_folder: LoraFolder = None,
    out: Annotated[str | None, typer.Option(help="A folder.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Use the pictures that the folder has.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")] = False,
) -> None:
    """Draw a picture for each value of a setting, or each pair of two, and a table of all.

    NAME is an option of generate, without its dashes. All pictures have the same seed. A cell that
    cannot be drawn shows why, and the others are drawn.
    """
    from pellucid.images.load import open_image
    from pellucid.images.sheet import table
    from pellucid.request import chosen_seed

    axes = (axis_of(x, "--x"), GridAxis("", ("",), ({},)) if y is None else axis_of(y, "--y"))
    count = len(axes[0].texts) * len(axes[1].texts)
    if count > MOST:
        raise ValueError(f"--x and --y must make at most {MOST} pictures, got {count}")
    recorded = read_like(like)
    given, warnings = recorded.over(ModelFiles(model, prediction, vae, None, lora_folder))
    if "prompt" not in {**recorded.request, **asked, **axes[0].fields[0], **axes[1].fields[0]}:
        raise ValueError('grid needs a prompt, such as: pellucid grid "a rabbit" --x steps=10,20')
    files, asked = with_settings(recorded, given, asked)
    if files.model is not None and holds_gan(files.model):
        raise ValueError(f"{files.model} is a GAN, which has no settings to compare")
    if resume and asked.get("seed") in (None, -1):
        raise ValueError("--resume needs a --seed")
    asked |= {"seed": chosen_seed(Request.model_validate(asked)), "count": 1}
    output = Output.of(out, count)
    for warning in warnings:
        report(warning)
    jobs = [
        [job_of(files, {**asked, **across, **down}) for across in axes[0].fields]
        for down in axes[1].fields
    ]
    errors = [job for row in jobs for job in row if isinstance(job, ValueError)]
    if len(errors) == count:
        raise errors[0]
    cells = Cells(recorded, DrawOptions(device, dtype), output)
    cells.made = PictureIndex.of(output.folder) if resume else None
    loaded = files.open(device, dtype)
    rows = [[cells.draw(loaded, job, as_json) for job in row] for row in jobs]
    shown = [[open_image(c) if isinstance(c, Path) else c for c in row] for row in rows]
    sheet = table(shown, axes[0].labels, axes[1].labels if y is not None else [""])
    about = {"grid": json.dumps({"x": x, "y": y})}
    stem = next((cell.stem for row in rows for cell in row if isinstance(cell, Path)), "failed")
    path = output.save_picture(sheet, None, f"{stem}-grid", about)
    if as_json:
        results = [[str(c) if isinstance(c, Path) else {"error": c} for c in row] for row in rows]
        show_json(json.dumps({"grid": str(path), "x": x, "y": y, "rows": results}, indent=1))
    else:
        show_path(path)
    if output.failed:
        raise SystemExit(2)


def job_of(files: ModelFiles, asked: dict[str, Any]) -> DrawJob | ValueError:
    """What a cell draws, or why it cannot be drawn."""
    try:
        return DrawJob(*with_named(files, Request.model_validate(asked)))
    except ValueError as error:
        return error


@dataclass
class Cells:
    """Draws the cells of a table."""

    recorded: PictureRecord
    settings: DrawOptions
    output: Output
    made: PictureIndex | None = None

    def draw(self, model: Model, job: DrawJob | ValueError, quiet: bool) -> Path | str:
        """The picture of a cell, or why it cannot be drawn."""
        try:
            if isinstance(job, ValueError):
                raise job
            if self.made is not None:
                self.made.last = None
            path: Path | None = None
            drawn = draw_job(job, model, self.settings, self.recorded, self.output, self.made)
            with closing(drawn):
                for batch in drawn:
                    record = batch.records[0]
                    stem = self.output.stem(record)
                    path = self.output.save_picture(batch.images[0], record, stem)
                    if not quiet:
                        show_path(path)
                    for warning in batch.warnings:
                        report(warning)
            if path is None and self.made is not None:
                path = self.made.last
            assert path is not None
            return path
        except ValueError as error:
            self.output.failed = True
            report(sentence_of(error))
            return sentence_of(error)


def axis_of(text: str, flag: str) -> GridAxis:
    """What --x or --y says. ValueError: no such option, or a value that it does not take."""
    name, equals, values = text.partition("=")
    name = name.strip().lstrip("-")
    if not equals or not values.strip():
        raise ValueError(f"{flag} must be NAME=VALUES, {AXIS}, got {text!r}")
    options = {word: option for option in options_of(Request) for word in _words(option)}
    options.pop("count")
    option = options.get(name)
    if option is None:
        near = ", ".join(nearest(name, options)[:SHOWN])
        raise ValueError(f"{flag}: unknown option {name!r}; nearest: {near}")
    parts = [part.strip() for part in values.split(";" if ";" in values else ",")]
    read = partial(_read, option, flag, name)
    return GridAxis(name, tuple(parts), tuple(read(part) for part in parts))


def _words(option: RequestOption) -> Sequence[str]:
    """How an option can be named: as its flags, and as its fields."""
    flags = [word.lstrip("-") for flag in option.flag.split() for word in flag.split("/")[:1]]
    return (*flags, *(option.names if len(option.names) == 1 else ()))


def _read(option: RequestOption, flag: str, name: str, text: str) -> dict[str, Any]:
    """The fields that a value sets, checked by themselves."""
    kind = option.kind if len(option.names) == 1 else str
    try:
        if kind is bool:
            value: Any = {"true": True, "false": False}[text.lower()]
        elif kind in (int, float):
            value = kind(text)
        else:
            value = [text] if repeats(kind) else text
        return option.read(value)
    except KeyError:
        raise ValueError(f"{flag}: {name} must be true or false, got {text!r}") from None
    except ValueError as error:
        if kind in (int, float):
            raise ValueError(f"{flag}: {name} must be a number, got {text!r}") from None
        raise ValueError(f"{flag}: {error}") from None
