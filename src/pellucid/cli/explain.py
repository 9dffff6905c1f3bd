"""``pellucid explain``: how a picture came about, as a page."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli._app import app, report, show_json, show_path
from pellucid.cli._like import Like, ModelFiles, read_like, with_named, with_settings
from pellucid.cli._model import Device, Dtype, LoraFolder, ModelOrLike, Prediction, Vae
from pellucid.cli._options import takes_request
from pellucid.cli._page import AsJson, Out, Overwrite, page_output
from pellucid.output_names import name_for
from pellucid.progress import stage

if TYPE_CHECKING:
    from pellucid.explain.run import Explanation, Recorder
    from pellucid.request import Request


@app.command()
@takes_request(
    "prompt",
    "negative_prompt",
    "steps",
    "guidance",
    "sampler",
    "spacing",
    "seed",
    "width",
    "height",
)
def explain(
    asked: dict[str, Any],
    like: Like = None,
    versus: Annotated[
        str | None, typer.Option(help="Another prompt, from the same noise, side by side.")
    ] = None,
    versus_guidance: Annotated[
        float | None, typer.Option(help="Another guidance scale, side by side.")
    ] = None,
    model: ModelOrLike = None,
    vae: Vae = None,
    prediction: Prediction = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    lora_folder: LoraFolder = None,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Draw a picture and write a page that shows every step that made it.

    The page is one file of at most 5 MB that needs no network: the tokens, the noise, what the
    network predicted at each step with and without the prompt, where the attention of each word
    was, the path of the sampler, and the time that it took.
    """
    from pellucid.request import Request

    if "prompt" not in asked and like is None:
        raise ValueError(
            'explain needs a prompt or --like PICTURE, such as: pellucid explain "a rabbit"'
        )
    output = page_output(out, as_json, overwrite)
    recorded = read_like(like)
    files, warnings = recorded.over(ModelFiles(model, prediction, vae, None, lora_folder))
    files, fields = with_settings(recorded, files, asked)
    if fields.pop("refiner", recorded.refiner) is not None:
        fields.pop("refiner_at", None)
        recorded = replace(recorded, refiner=None)
        warnings.append(f"{like} was made with a refiner; this explains a run without it")
    files, request = with_named(files, Request.model_validate(fields))
    requests = _compared(request, versus, versus_guidance)

    from pellucid.adapters import adapt
    from pellucid.explain.run import Recorder, page

    loaded = files.open(device, dtype)
    warnings += recorded.missing(files, loaded.name, request)
    adapted = partial(adapt, folder=files.lora_folder)
    recorders = [Recorder(loaded, each, adapted) for each in requests]  # errors come now
    runs = [_watch(recorder) for recorder in recorders]
    for warning in dict.fromkeys([*warnings, *(text for run in runs for text in run.warnings)]):
        report(warning)
    if as_json:
        show_json(json.dumps({"explanations": [run.record() for run in runs]}))
    if output is None:
        return
    with stage("making the page"):
        text, left_out = page.page(loaded, runs)
    if left_out:
        report(left_out)
    stem = name_for(runs[0].request.record())
    path = output.save_page(text, f"{stem}-explain")
    if not as_json:
        show_path(path)
    if output.failed:
        raise SystemExit(2)


def _compared(request: Request, versus: str | None, versus_guidance: float | None) -> list[Request]:
    """The request, and the one that it is compared with if there is one, with the same noise."""
    from pellucid.request import chosen_seed

    if versus is None and versus_guidance is None:
        return [request]
    request = request.model_copy(update={"seed": chosen_seed(request)})
    changes = {"prompt": versus, "guidance": versus_guidance}
    given = {n: v for n, v in changes.items() if v is not None}
    if versus is not None and not versus.strip():
        raise ValueError("--versus must not be empty: a text without words has nothing to explain")
    return [request, type(request).model_validate(request.model_dump(exclude_unset=True) | given)]


def _watch(recorder: Recorder) -> Explanation:
    """Draw, watched."""
    from pellucid.data.emoji import concept_names, synonyms

    with stage(f'drawing "{recorder.request.prompt[:40]}"'):
        for _ in recorder.run():
            pass
    with stage("comparing words"):
        return recorder.explanation(concept_names(), synonyms())
