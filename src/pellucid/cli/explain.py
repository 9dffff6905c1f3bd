"""``pellucid explain``: how a picture came about, as a page."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli._app import MODEL_HELP, app
from pellucid.cli._model import DEVICE_HELP, DTYPE_HELP, open_model
from pellucid.cli._page import JSON_HELP, page_path

if TYPE_CHECKING:
    from pellucid.explain import Explanation
    from pellucid.model import Model
    from pellucid.pipeline import Adapt
    from pellucid.request import Request


@app.command()
def explain(
    prompt: Annotated[str | None, typer.Argument(help="What to draw.")] = None,
    like: Annotated[
        Path | None, typer.Option(help="A picture made here or by A1111: explain how.")
    ] = None,
    versus: Annotated[
        str | None, typer.Option(help="Another prompt, from the same noise, side by side.")
    ] = None,
    versus_guidance: Annotated[
        float | None, typer.Option(help="Another guidance scale, side by side.")
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What to keep away from.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler, 1 to 1000.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How much the text counts; 1: once.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="ddim, euler, dpmpp_2m, ...")] = None,
    spacing: Annotated[
        str | None, typer.Option("--spacing", "--schedule", help="Where the steps lie: karras, ...")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed is the same picture.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.")] = None,
    model: Annotated[Path | None, typer.Option(help=MODEL_HELP)] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
    dtype: Annotated[str, typer.Option(help=DTYPE_HELP)] = "auto",
    lora_folder: Annotated[
        Path | None, typer.Option(help="Where the LoRAs of <lora:name:weight> in a prompt lie.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The page, a .html file; outputs/PROMPT-SEED-explain.html if left out."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Draw a picture and write a page that shows every step that made it.

    The page is one file of at most 5 MB that needs no network: the tokens, the noise, what the
    network guessed at each step with the words and without, where each word looked, the way of the
    sampler, and the time it took.
    """
    from pellucid.adapters import adapt
    from pellucid.cli.generate import _from_picture as from_picture
    from pellucid.cli.generate import _size as size_of
    from pellucid.cli.generate import _stem as stem
    from pellucid.explain import page
    from pellucid.request import Request

    if prompt is None and like is None:
        raise ValueError(
            'a prompt or --like PICTURE is wanted, such as: pellucid explain "a rabbit"'
        )
    page_path(out, as_json, Path(), "explain")  # said now, not after the work is done
    fields: dict[str, Any] = {} if like is None else from_picture(like)
    width, height = (None, None) if size is None else size_of(size)
    asked = {
        "prompt": prompt,
        "negative_prompt": negative,
        "steps": steps,
        "guidance": guidance,
        "sampler": sampler,
        "spacing": spacing,
        "seed": seed,
        "width": width,
        "height": height,
    }
    fields |= {name: value for name, value in asked.items() if value is not None}
    loaded = open_model(model, device=device, dtype=dtype)
    watch = partial(_watch, loaded, partial(adapt, folder=lora_folder))
    told = [watch(Request.model_validate(fields))]
    if versus is not None or versus_guidance is not None:
        # The request that was carried out has the seed, so that both begin with the same noise.
        other = told[0].request.model_dump()
        other |= {} if versus is None else {"prompt": versus}
        other |= {} if versus_guidance is None else {"guidance": versus_guidance}
        told.append(watch(Request.model_validate(other)))
    for warning in dict.fromkeys(text for each in told for text in each.warnings):
        typer.echo(f"pellucid: {warning}", err=True)
    if as_json:
        typer.echo(json.dumps({"explanations": [each.record() for each in told]}))
    name = stem(told[0].request.prompt, told[0].request.seed or 0)
    path = page_path(out, as_json, Path(f"{name}.png"), "explain")
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    left_out = page.write(path, loaded, told)
    if left_out:
        typer.echo(f"pellucid: {left_out}", err=True)
    if not as_json:
        typer.echo(path)


def _watch(model: Model, adapt: Adapt, request: Request) -> Explanation:
    """Draw with a progress bar, watched."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from pellucid.data.emoji import concept_names
    from pellucid.explain import Watch

    watch = Watch(model, request, adapt)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    hidden = not console.is_terminal  # it would still write an empty line
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(request.prompt[:40], total=None)
        for progress in watch.run():
            bar.update(task, total=progress.steps, completed=progress.step)
    return watch.explanation(concept_names())
