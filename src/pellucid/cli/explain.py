"""``pellucid explain``: how a picture came about, as a page."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pellucid.cli._app import app, tell
from pellucid.cli._bar import bar
from pellucid.cli._files import stem_of
from pellucid.cli._like import Opening, read
from pellucid.cli._model import Device, Dtype, LoraFolder, ModelFile, Prediction, Vae
from pellucid.cli._page import JSON_HELP, page_path
from pellucid.cli._request import (
    Guidance,
    Like,
    Negative,
    Sampler,
    Seed,
    Size,
    Spacing,
    Steps,
    size_of,
)

if TYPE_CHECKING:
    from pellucid.explain.run import Explanation
    from pellucid.model import Model
    from pellucid.pipeline import Adapt
    from pellucid.request import Request


@app.command()
def explain(
    prompt: Annotated[str | None, typer.Argument(help="What to draw.")] = None,
    like: Like = None,
    versus: Annotated[
        str | None, typer.Option(help="Another prompt, from the same noise, side by side.")
    ] = None,
    versus_guidance: Annotated[
        float | None, typer.Option(help="Another guidance scale, side by side.")
    ] = None,
    negative: Negative = None,
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: Sampler = None,
    spacing: Spacing = None,
    seed: Seed = None,
    size: Size = None,
    model: ModelFile = None,
    vae: Vae = None,
    prediction: Prediction = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    lora_folder: LoraFolder = None,
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
    from pellucid.explain.run import page
    from pellucid.request import Request

    if prompt is None and like is None:
        raise ValueError(
            'a prompt or --like PICTURE is wanted, such as: pellucid explain "a rabbit"'
        )
    page_path(out, as_json, Path(), "explain")  # said now, not after the work is done
    told = read(like)
    opening, warnings = told.over(Opening(model, prediction, vae, None, lora_folder))
    width, height = size_of(size)
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
    fields = dict(told.request) | {name: v for name, v in asked.items() if v is not None}
    if fields.pop("refiner", told.refiner) is not None:
        fields.pop("refiner_at", None)
        warnings.append(f"{like} was made with a refiner, and a run without it is explained")
    request = Request.model_validate(fields)
    loaded = opening.open(device, dtype)
    warnings += told.other_model(opening, loaded.name)
    watch = partial(_watch, loaded, partial(adapt, folder=opening.lora_folder))
    runs = [watch(request)]
    if versus is not None or versus_guidance is not None:
        # The request that was carried out has the seed, so that both begin with the same noise.
        other = runs[0].request.model_dump()
        other |= {} if versus is None else {"prompt": versus}
        other |= {} if versus_guidance is None else {"guidance": versus_guidance}
        runs.append(watch(Request.model_validate(other)))
    warnings += [text for each in runs for text in each.warnings]
    for warning in dict.fromkeys(warnings):
        tell(warning)
    if as_json:
        typer.echo(json.dumps({"explanations": [each.record() for each in runs]}))
    name = stem_of(runs[0].request.prompt, runs[0].request.seed or 0)
    path = page_path(out, as_json, Path(f"{name}.png"), "explain")
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    left_out = page.write(path, loaded, runs)
    if left_out:
        tell(left_out)
    if not as_json:
        typer.echo(path)


def _watch(model: Model, adapt: Adapt, request: Request) -> Explanation:
    """Draw with a progress bar, watched."""
    from pellucid.data.emoji import concept_names
    from pellucid.explain.run import Recorder

    recorder = Recorder(model, request, adapt)
    with bar(request.prompt[:40]) as advance:
        for progress in recorder.run():
            advance(total=progress.steps, completed=progress.step)
    return recorder.explanation(concept_names())
