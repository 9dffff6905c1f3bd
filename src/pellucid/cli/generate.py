"""``pellucid generate``: pictures from words."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli._app import app, report, show_json, show_path
from pellucid.cli._complete import completion_of
from pellucid.cli._draw import (
    Drawn,
    DrawOptions,
    check_gan_options,
    draw_with_diffusion,
    draw_with_gan,
)
from pellucid.cli._files import OUTPUTS, OVERWRITE, Output, save_film
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
from pellucid.cli._options import option_of, takes_request
from pellucid.cli._process import held_signals
from pellucid.cli._spread import draw_on_ray
from pellucid.messages import written
from pellucid.request import Request
from pellucid.request.fields import MODEL, OUTPUT
from pellucid.safetensors_header import holds_gan

if TYPE_CHECKING:
    from PIL.Image import Image


def _in_panel(panel: str, help: str, *flags: str) -> Any:
    return typer.Option(*flags, help=help, rich_help_panel=panel)


def _presets() -> list[str]:
    from pellucid import presets

    return presets.names()


PresetName = Annotated[
    str | None,
    typer.Option(
        help="Recommended settings of a few-step model (lcm, turbo, lightning, hyper, ...). "
        "Other options override them.",
        autocompletion=completion_of(_presets),
    ),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        help="A file with a prompt, or JSON with fields of a request, in each line; - is stdin.",
        metavar="FILE",
    ),
]
Ray = Annotated[
    bool, typer.Option("--ray", help="Spread the lines of --prompts over a Ray cluster.")
]
Dynamic = Annotated[
    bool,
    typer.Option(
        "--dynamic", help="Draw variations: {red|blue}, 2$$ of them, __animal__ from a list."
    ),
]
LiveLora = Annotated[
    bool, _in_panel(MODEL, "Add LoRAs at every step: slower, less memory.", "--live-lora")
]
Out = Annotated[
    str | None,
    _in_panel(
        OUTPUT,
        "A folder, or a file that ends in .png, .jpg or .webp. Default: the folder of your "
        f"settings, else {OUTPUTS}.",
    ),
]
Name = Annotated[
    str | None,
    _in_panel(OUTPUT, "Names of pictures in the folder, such as {date}/{seed}-{prompt}.", "--name"),
]
Resume = Annotated[
    bool,
    _in_panel(OUTPUT, "Leave out pictures that the folder has: with the same record.", "--resume"),
]
Overwrite = Annotated[bool, _in_panel(OUTPUT, OVERWRITE, "--overwrite")]
Grid = Annotated[bool, _in_panel(OUTPUT, "Also write all pictures side by side as one.", "--grid")]
Film = Annotated[
    bool, _in_panel(OUTPUT, "Also write all steps, as a strip and as a film.", "--film")
]
Preview = Annotated[
    str, _in_panel(OUTPUT, "How a film shows a step: linear, tiny, vae; auto is a fast one.")
]
Show = Annotated[bool, _in_panel(OUTPUT, "Also draw the pictures in the terminal.", "--show")]
AsJson = Annotated[bool, _in_panel(OUTPUT, "Results as JSON on stdout.", "--json")]


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


@dataclass
class Results:
    """What a run has written. Paths are printed as soon as they are there, JSON at the end."""

    output: Output
    settings: DrawOptions
    as_json: bool
    images: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    grid: dict[str, str] = field(default_factory=dict)
    first: dict[str, Any] | None = None
    """What the first picture is stored with."""

    def deliver(self, drawn: Iterable[Drawn], with_grid: bool) -> None:
        """Writes each picture when it is finished. with_grid: also all pictures as one."""
        images: list[Image] = []
        finished = False
        try:
            for batch in drawn:
                for warning in batch.warnings:
                    self.warn(warning)
                with held_signals():  # what is drawn is not lost
                    for i in range(len(batch.images)):
                        self.write(batch, i)
                images += batch.images if with_grid else []
            if len(images) > 1:
                self.write_grid(images)
            elif images:
                self.warn("--grid does nothing for one picture")
            finished = True
        finally:
            if self.as_json and (self.images or finished):
                found = {"images": self.images, "warnings": self.warnings} | self.grid
                show_json(json.dumps(found, indent=1))

    def warn(self, warning: str) -> None:
        """Reports a warning once."""
        warning = written(warning, option_of)
        if warning not in self.warnings:
            report(warning)
            self.warnings.append(warning)

    def write(self, drawn: Drawn, i: int) -> None:
        """Writes picture i, and its film if there is to be one."""
        from pellucid.images.terminal import draw_in_terminal

        image, record = drawn.images[i], drawn.records[i]
        target = self.output.save_picture(image, record, self.output.stem(record))
        paths = self.shown({"path": str(target)})
        if self.settings.film and drawn.model is not None:
            preview = self.settings.preview
            paths |= self.shown(
                save_film(self.output, drawn.model, drawn.steps, i, target, preview)
            )
        self.first = record if self.first is None else self.first
        if self.as_json:
            self.images.append({**paths, "seed": record["seed"], "request": record})
        if self.settings.show:
            typer.echo(draw_in_terminal(image, 48), err=True)

    def write_grid(self, images: Sequence[Image]) -> None:
        """Writes all pictures side by side as one."""
        from pellucid.images.pixels import grid

        stem = f"{self.output.stem(self.first or {})}-grid"
        self.grid = self.shown({"grid": str(self.output.save_picture(grid(images), None, stem))})

    def shown(self, paths: dict[str, str]) -> dict[str, str]:
        """The same, printed."""
        for path in () if self.as_json else paths.values():
            show_path(path)
        return paths
