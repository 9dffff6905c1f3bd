"""``pellucid generate``: pictures from words."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli._app import app, report, show_json, show_path
from pellucid.cli._draw import (
    Drawn,
    Settings,
    check_gan_options,
    draw_with_diffusion,
    draw_with_gan,
)
from pellucid.cli._files import OUTPUTS, OVERWRITE, Output, save_film
from pellucid.cli._like import Like, ModelFiles, read_like, with_named, with_settings
from pellucid.cli._model import Device, Dtype, LoraFolder, ModelOrLike, Prediction, TinyVae, Vae
from pellucid.cli._options import option_of, takes_request
from pellucid.cli._process import held_signals
from pellucid.messages import written
from pellucid.request import MODEL, OUTPUT

if TYPE_CHECKING:
    from PIL.Image import Image


def _in_panel(panel: str, help: str, *flags: str) -> Any:
    return typer.Option(*flags, help=help, rich_help_panel=panel)


@app.command()
@takes_request()
def generate(
    asked: dict[str, Any],
    preset: Annotated[
        str | None,
        typer.Option(
            help="Recommended settings of a few-step model (lcm, turbo, lightning, hyper, ...). "
            "Other options override them."
        ),
    ] = None,
    like: Like = None,
    model: ModelOrLike = None,
    vae: Vae = None,
    prediction: Prediction = None,
    tiny_vae: TinyVae = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    lora_folder: LoraFolder = None,
    live_lora: Annotated[
        bool, _in_panel(MODEL, "Add LoRAs at every step: slower, less memory.", "--live-lora")
    ] = False,
    out: Annotated[
        str | None,
        _in_panel(
            OUTPUT,
            "A folder, or a file that ends in .png, .jpg or .webp. Default: the folder of your "
            f"settings, else {OUTPUTS}.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        _in_panel(
            OUTPUT, "Names of pictures in the folder, such as {date}/{seed}-{prompt}.", "--name"
        ),
    ] = None,
    overwrite: Annotated[bool, _in_panel(OUTPUT, OVERWRITE, "--overwrite")] = False,
    grid: Annotated[
        bool, _in_panel(OUTPUT, "Also write all pictures side by side as one.", "--grid")
    ] = False,
    film: Annotated[
        bool, _in_panel(OUTPUT, "Also write all steps, as a strip and as a film.", "--film")
    ] = False,
    preview: Annotated[
        str, _in_panel(OUTPUT, "How a film shows a step: linear, tiny, vae; auto is a fast one.")
    ] = "auto",
    show: Annotated[
        bool, _in_panel(OUTPUT, "Also draw the pictures in the terminal.", "--show")
    ] = False,
    as_json: Annotated[bool, _in_panel(OUTPUT, "Results as JSON on stdout.", "--json")] = False,
) -> None:
    """Draw pictures from words."""
    from pellucid.checkpoints import holds_gan
    from pellucid.presets import preset as preset_named
    from pellucid.request import Request

    recorded = read_like(like)
    files, warnings = recorded.over(ModelFiles(model, prediction, vae, tiny_vae, lora_folder))
    settings = Settings(device, dtype, live_lora, film, preview, show)
    if preset is not None:
        asked = preset_named(preset).given() | asked
    files, asked = with_settings(recorded, files, asked)
    is_gan = files.model is not None and holds_gan(files.model)
    if is_gan:
        check_gan_options(files, asked, settings)
    elif "prompt" not in asked:
        raise ValueError('generate needs a prompt, such as: pellucid generate "a rabbit"')
    files, request = with_named(files, Request.model_validate(asked))
    output = Output.of(out, request.count, overwrite, film, name)
    drawn: Generator[Drawn]
    if is_gan:
        drawn = draw_with_gan(files, request, settings)
    else:
        drawn = draw_with_diffusion(files, request, settings, recorded, output)
    results = Results(output, settings, as_json)
    for warning in warnings:
        results.warn(warning)
    with closing(drawn):
        results.deliver(drawn, with_grid=grid)
    if output.failed:
        raise SystemExit(2)


@dataclass
class Results:
    """What a run has written. Paths are printed as soon as they are there, JSON at the end."""

    output: Output
    settings: Settings
    as_json: bool
    images: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    grid: dict[str, str] = field(default_factory=dict)

    def deliver(self, drawn: Iterable[Drawn], with_grid: bool) -> None:
        """Writes each picture when it is finished. with_grid: also all pictures as one."""
        images: list[Image] = []
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
        finally:
            if self.as_json and self.images:
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
        self.images.append({**paths, "seed": record["seed"], "request": record})
        if self.settings.show:
            typer.echo(draw_in_terminal(image, 48), err=True)

    def write_grid(self, images: Sequence[Image]) -> None:
        """Writes all pictures side by side as one."""
        from pellucid.images.pixels import grid

        stem = f"{self.output.stem(self.images[0]['request'])}-grid"
        self.grid = self.shown({"grid": str(self.output.save_picture(grid(images), None, stem))})

    def shown(self, paths: dict[str, str]) -> dict[str, str]:
        """The same, printed."""
        for path in () if self.as_json else paths.values():
            show_path(path)
        return paths
