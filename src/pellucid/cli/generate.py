"""``pellucid generate``: pictures from words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pellucid.cli._app import app, report
from pellucid.cli._draw import (
    Drawn,
    Settings,
    check_gan_options,
    draw_with_diffusion,
    draw_with_gan,
)
from pellucid.cli._files import free_name, names_a_file, stem_of, write_film
from pellucid.cli._like import Like, ModelFiles, read_like
from pellucid.cli._model import Device, Dtype, LoraFolder, ModelFile, Prediction, TinyVae, Vae
from pellucid.cli._options import takes_request
from pellucid.request import MODEL, OUTPUT


def _in_panel(panel: str, help: str, *flags: str) -> Any:
    return typer.Option(*flags, help=help, rich_help_panel=panel)


@app.command()
@takes_request()
def generate(
    asked: dict[str, Any],
    preset: Annotated[
        str | None,
        typer.Option(
            help="Settings of a fast model: lcm, turbo, lightning, hyper. Other options win."
        ),
    ] = None,
    like: Like = None,
    model: ModelFile = None,
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
        Path, _in_panel(OUTPUT, "A folder, or a file that ends in .png, .jpg or .webp.")
    ] = Path("outputs"),
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
    settings = Settings(device, dtype, live_lora, film, preview)
    if preset is not None:
        asked = preset_named(preset).given() | asked
    asked = {**recorded.request, **asked}
    is_gan = files.model is not None and holds_gan(files.model)
    if is_gan:
        check_gan_options(files, asked, settings)
    elif "prompt" not in asked:
        raise ValueError('generate needs a prompt, such as: pellucid generate "a rabbit"')
    request = Request.model_validate(asked)
    is_file = names_a_file(out, request.count)
    folder = out.parent if is_file else out
    if is_gan:
        drawn = draw_with_gan(files, request, settings)
    else:
        drawn = draw_with_diffusion(files, request, settings, recorded, folder)
    warnings += drawn.warnings
    for warning in warnings:
        report(warning)
    folder.mkdir(parents=True, exist_ok=True)
    results = [_write(drawn, i, out, settings, is_file) for i in range(len(drawn.images))]
    grid = _write_grid(drawn, out) if is_gan and len(results) > 1 else {}
    if show:
        _show(drawn)
    if as_json:
        for result, record in zip(results, drawn.records, strict=True):
            result["request"] = record
        typer.echo(json.dumps({"images": results, "warnings": warnings} | grid, indent=1))
        return
    for result in (*results, grid):
        for name in ("path", "strip", "film", "grid"):
            if name in result:
                typer.echo(result[name])


def _write(drawn: Drawn, i: int, out: Path, settings: Settings, is_file: bool) -> dict[str, Any]:
    """Writes picture i, and its film if there is to be one; where they are."""
    from pellucid.images.metadata import save_image

    record = drawn.records[i]
    target = out if is_file else free_name(out, stem_of(record["prompt"], record["seed"]))
    save_image(drawn.images[i], target, record)
    result = {"path": str(target), "seed": record["seed"]}
    if settings.film and drawn.steps and drawn.model is not None:
        result |= write_film(drawn.model, drawn.steps, i, target, settings.preview)
    return result


def _write_grid(drawn: Drawn, folder: Path) -> dict[str, Any]:
    """Writes all pictures side by side as one."""
    from pellucid.images.metadata import save_image
    from pellucid.images.pixels import grid

    first = drawn.records[0]
    path = free_name(folder, f"{stem_of(first['prompt'], first['seed'])}-grid")
    save_image(grid(drawn.images), path)
    return {"grid": str(path)}


def _show(drawn: Drawn) -> None:
    from pellucid.images.terminal import draw_in_terminal

    for picture in drawn.images:
        typer.echo(draw_in_terminal(picture, 48), err=True)
