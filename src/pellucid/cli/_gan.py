"""What ``pellucid generate`` does where the model is a GAN: one step, no noise to take away."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from pellucid.cli._app import tell
from pellucid.cli._files import free_name, names_a_file, stem_of

KNOWN = ("prompt", "seed", "count")
"""The fields of a request that mean something to a GAN."""
SHOWN = 8  # classes that a message names


def refuse(path: Path, options: Sequence[str]) -> None:
    """ValueError if there are any `options`, which mean nothing to a GAN."""
    if options:
        raise ValueError(
            f"{path} is a GAN, which draws in one step at its own size; {', '.join(options)} "
            f"{'is' if len(options) == 1 else 'are'} for diffusion models"
        )


def draw(
    path: Path, fields: Mapping[str, Any], out: Path, device: str, show: bool, as_json: bool
) -> None:
    """Draw what was asked for, write it to `out`, and say where it is.

    Of more than one picture there is a sheet too. An unconditional GAN needs no prompt.
    ValueError: a field that only a diffusion model has, no class or none of that name, a seed or
    count that is out of range.
    """
    from pellucid import checkpoints, gan
    from pellucid.images.metadata import save_image
    from pellucid.images.pixels import grid, to_pil
    from pellucid.images.terminal import draw_in_terminal
    from pellucid.request import Request
    from pellucid.runtime.devices import choose_device

    refuse(path, [name.replace("_", " ") for name in fields if name not in KNOWN])
    request = Request.model_validate(dict(fields))  # which knows what seed and count may be
    is_file = names_a_file(out, request.count)
    loaded = checkpoints.load_gan(path, choose_device(device))
    config = loaded.generator.config
    if config.classes and "prompt" not in fields:
        raise ValueError(
            f"a prompt is wanted, one of the classes of {path}: {', '.join(config.classes[:SHOWN])}"
            + (", ..." if len(config.classes) > SHOWN else "")
        )
    label = gan.class_of(config, request.prompt)
    warnings = []
    if label is None and request.prompt.strip():
        warnings.append(f"{path} is an unconditional GAN: the prompt is not read")
    for warning in warnings:
        tell(warning)
    prompt = "" if label is None else config.classes[label]
    first = request.seed if request.seed not in (None, -1) else secrets.randbelow(2**32)
    assert first is not None
    seeds = [first + i for i in range(request.count)]
    drawn = [to_pil(gan.sample(loaded.generator, [seed], label)[0]) for seed in seeds]
    (out.parent if is_file else out).mkdir(parents=True, exist_ok=True)
    results = []
    for picture, seed in zip(drawn, seeds, strict=True):
        record = {
            "prompt": prompt,
            "seed": seed,
            "model": loaded.name,
            "model_file": str(path),
        }
        target = out if is_file else free_name(out, stem_of(prompt, seed))
        save_image(picture, target, record)
        result: dict[str, Any] = {"path": str(target), "seed": seed}
        results.append(result | ({"request": record} if as_json else {}))
    sheet = grid(drawn)
    paths = [result["path"] for result in results]
    if len(drawn) > 1:
        paths.append(str(free_name(out, f"{stem_of(prompt, first)}-grid")))
        save_image(sheet, paths[-1])
    if show:
        typer.echo(draw_in_terminal(sheet, 48), err=True)
    if as_json:
        overview = {"grid": paths[-1]} if len(drawn) > 1 else {}
        typer.echo(json.dumps({"images": results, "warnings": warnings} | overview, indent=1))
        return
    for line in paths:
        typer.echo(line)
