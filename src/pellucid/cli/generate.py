"""``pellucid generate``: pictures from words."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from pellucid.cli._app import app, report
from pellucid.cli._draw import (
    Drawn,
    DrawOptions,
    check_gan_options,
    draw_with_diffusion,
    draw_with_gan,
)
from pellucid.cli._files import Output
from pellucid.cli._generate_options import (
    AsJson,
    Dynamic,
    Film,
    Grid,
    LiveLora,
    Name,
    Out,
    Overwrite,
    PresetName,
    Preview,
    Prompts,
    Ray,
    Resume,
    Show,
)
from pellucid.cli._jobs import Jobs, PictureIndex, read_prompts
from pellucid.cli._like import Like, ModelFiles, read_like, with_settings
from pellucid.cli._model import (
    Backend,
    Device,
    Dtype,
    Exact,
    Fast,
    LoraFolder,
    ModelOrLike,
    Prediction,
    Threads,
    TinyVae,
    Vae,
    computed,
)
from pellucid.cli._options import takes_request
from pellucid.cli._results import Results
from pellucid.cli._spread import draw_on_ray
from pellucid.request import Request
from pellucid.safetensors_header import holds_gan


@app.command()
@takes_request()
def generate(
    asked: dict[str, Any],
    preset: PresetName = None,
    prompts: Prompts = None,
    dynamic: Dynamic = False,
    ray: Ray = False,
    like: Like = None,
    model: ModelOrLike = None,
    vae: Vae = None,
    prediction: Prediction = None,
    tiny_vae: TinyVae = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    backend: Backend = "auto",
    threads: Threads = None,
    fast: Fast = False,
    exact: Exact = False,
    lora_folder: LoraFolder = None,
    live_lora: LiveLora = False,
    out: Out = None,
    name: Name = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    grid: Grid = False,
    film: Film = False,
    preview: Preview = "auto",
    show: Show = False,
    as_json: AsJson = False,
) -> None:
    """Draw pictures from words."""
    recorded = read_like(like)
    files, warnings = recorded.over(ModelFiles(model, prediction, vae, tiny_vae, lora_folder))
    dtype, backend = computed(dtype, backend, fast, exact)
    settings = DrawOptions(device, dtype, backend, threads, live_lora, film, preview, show)
    if prompts is not None and "prompt" in asked:
        raise ValueError(f"give a prompt or --prompts, not both, got {asked['prompt']!r}")
    if ray and (prompts is None or film):
        raise ValueError("--ray needs --prompts, and makes no --film")
    if preset is not None:
        from pellucid.presets import preset as preset_named

        asked = preset_named(preset).given() | asked
    files, asked = with_settings(recorded, files, asked)
    is_gan = files.model is not None and holds_gan(files.model)
    if is_gan:
        check_gan_options(files, asked, settings)
        if prompts is not None or dynamic or resume:
            raise ValueError(f"{files.model} is a GAN; prompts, dynamic and resume are for others")
    else:
        check_prompt(asked, prompts, dynamic, resume)
    lines = () if prompts is None else read_prompts(prompts)
    jobs = Jobs(files, asked, prompts, lines, dynamic)
    output = Output.of(out, jobs.count(), overwrite, film, name)
    if resume and output.file is not None:
        raise ValueError(f"--resume looks through a folder, and --out names the file {out}")
    made = PictureIndex.of(output.folder, jobs) if resume else None
    drawn: Generator[Drawn]
    if is_gan:
        drawn = draw_with_gan(files, Request.model_validate(asked), settings)
    else:
        draw = draw_on_ray if ray else draw_with_diffusion
        drawn = draw(jobs, settings, recorded, output, made)
    results = Results(output, settings, as_json)
    for warning in warnings:
        results.warn(warning)
    with closing(drawn):
        results.deliver(drawn, with_grid=grid)
    if output.failed:
        raise SystemExit(2)


def check_prompt(
    asked: Mapping[str, Any], prompts: str | None, dynamic: bool, resume: bool
) -> None:
    """ValueError: there is no prompt, or the name of a file in place of it. A message where a prompt
    has variations that are not drawn."""
    from pellucid.variations import varied

    prompt = asked.get("prompt")
    if resume and dynamic and asked.get("seed") in (None, -1):
        raise ValueError("--resume with --dynamic needs a --seed, which decides the variations")
    if prompt is None and prompts is None:
        raise ValueError('generate needs a prompt, such as: pellucid generate "a rabbit"')
    if not isinstance(prompt, str):
        return
    if prompt.startswith("@") and Path(prompt[1:]).is_file():
        raise ValueError(
            f"the prompt is {prompt!r}; --prompts {prompt[1:]} draws each line of the file"
        )
    if not dynamic and varied(prompt):
        report("the prompt is drawn as it is written; --dynamic draws its variations")
