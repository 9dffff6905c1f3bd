"""``pellucid upscale``: larger pictures from finished ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pellucid.cli._app import app, show_json, show_path
from pellucid.cli._complete import names_in
from pellucid.cli._files import OUTPUTS, OVERWRITE, Output
from pellucid.cli._model import Device, Dtype, find
from pellucid.hires import DIFFUSION, PICTURE
from pellucid.progress import stage

if TYPE_CHECKING:
    from pellucid.upscale import Upscaler

HELP = (
    "diffusion (the second stage of the included model, which is good for flat art: emoji, icons, "
    "drawings), lanczos, nearest, a file of the ESRGAN family, a model with a second stage, or a name "
    "in your folder of upscalers. Default: diffusion."
)


@app.command()
def upscale(
    pictures: Annotated[list[Path], typer.Argument(help="Any pictures.", metavar="PICTURE...")],
    upscaler: Annotated[
        str, typer.Option(help=HELP, autocompletion=names_in("upscalers"))
    ] = DIFFUSION,
    scale: Annotated[
        float | None,
        typer.Option(
            help="How much larger. Default: as the upscaler does: 4 with diffusion, 2 with a filter."
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Annotated[
        str | None,
        typer.Option(
            help="A folder, or a file that ends in .png, .jpg or .webp. Default: the folder of your "
            f"settings, else {OUTPUTS}."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help=OVERWRITE)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")] = False,
) -> None:
    """Make pictures larger.

    The default has learned from emoji. It makes the edges of flat art crisp; for photographs take a
    network that has learned from them (--upscaler FILE).

    A picture keeps its transparency and the record of how it was made. Everything is checked before
    the work begins; a large picture is enlarged in tiles.
    """
    from pellucid.images.load import open_header, open_with_alpha
    from pellucid.images.metadata import upscaled

    if scale is not None and not 0 < scale <= 16:
        raise ValueError(f"--scale must be above 0 and at most 16, got {scale:g}")
    output = Output.of(out, len(pictures), overwrite)
    sizes = {}
    for picture in pictures:
        with open_header(picture)[0] as opened:
            sizes[picture] = opened.size
    file = None if upscaler in (DIFFUSION, *PICTURE) else find("upscalers", upscaler)

    from pellucid.upscale import check_size, size_of
    from pellucid.upscale import upscale as enlarge

    chosen = open_upscaler(upscaler, file, device, dtype)
    factor = chosen.scale if scale is None else scale
    for picture, size in sizes.items():
        check_size(str(picture), size, max(factor, chosen.scale))
    results = []
    for picture in pictures:
        opened = open_with_alpha(picture)
        with stage(f"enlarging {picture.name}, tile") as now:
            for step in enlarge(chosen, opened, scale):
                now.total, now.done = step.total, step.done
        assert step.picture is not None
        record, texts = upscaled(picture, chosen.name, factor)
        path = output.save_picture(step.picture, record, f"{picture.stem}-{factor:g}x", texts)
        width, height = size_of(opened.size, factor)
        results.append({"path": str(path), "width": width, "height": height})
        if not as_json:
            show_path(path)
    if as_json:
        show_json(json.dumps({"images": results, "upscaler": chosen.name}, indent=1))
    if output.failed:
        raise SystemExit(2)


def open_upscaler(name: str, path: Path | None, device: str, dtype: str) -> Upscaler:
    """The upscaler of this name, or in the file `path`. ValueError: it is no upscaler."""
    import torch

    from pellucid import checkpoints
    from pellucid.runtime.devices import choose_device
    from pellucid.runtime.precision import choose_dtype
    from pellucid.upscale import Filter

    if name in PICTURE:
        return Filter(name)
    where = choose_device(device)
    choice = choose_dtype(where, dtype, torch.float32)
    return checkpoints.load_upscaler(path, where, choice.dtype)
