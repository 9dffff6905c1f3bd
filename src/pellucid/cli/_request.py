"""The options of a request that more than one command has, and how options are written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Negative = Annotated[str | None, typer.Option(help="What to keep away from.")]
Steps = Annotated[int | None, typer.Option(help="Steps of the sampler, 1 to 1000.")]
Guidance = Annotated[float | None, typer.Option(help="How much the text counts; 1: once.")]
Sampler = Annotated[str | None, typer.Option(help="ddim, euler, dpmpp_2m, ...")]
Spacing = Annotated[
    str | None, typer.Option("--spacing", "--schedule", help="Where the steps lie: karras, ...")
]
Seed = Annotated[int | None, typer.Option(help="The same seed is the same picture.")]
Size = Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.")]
Like = Annotated[
    Path | None,
    typer.Option(help="A picture made here or by A1111: do as it was done, with the same files."),
]


def size_of(text: str | None) -> tuple[int | None, int | None]:
    """Width and height of --size."""
    if text is None:
        return None, None
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(p.strip().isdecimal() for p in parts):
        raise ValueError(f"--size is {text!r}; WIDTHxHEIGHT or one number is wanted, such as 64x64")
    return int(parts[0]), int(parts[-1])


def extend_of(text: str) -> tuple[int, ...]:
    """Left, top, right and bottom of --extend."""
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--extend is {text!r}; LEFT,TOP,RIGHT,BOTTOM in pixels is wanted")
    return tuple(int(part) for part in parts)


def mix_of(items: list[str]) -> list[tuple[str, float]]:
    """Prompts and weights of --mix."""
    out = []
    for item in items:
        text, colon, weight = item.rpartition(":")
        try:
            out.append((text, float(weight)) if colon else (item, 1.0))
        except ValueError:
            raise ValueError(f"--mix is {item!r}; TEXT or TEXT:WEIGHT is wanted") from None
    return out


def interval_of(text: str) -> tuple[float, float]:
    """The two shares of --interval."""
    try:
        start, end = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"--interval is {text!r}; FROM,TO is wanted, such as 0.2,0.8") from None
    return start, end


def lora_of(item: str) -> tuple[str, float, float]:
    """FILE, FILE:WEIGHT or FILE:WEIGHT:WEIGHT IN THE TEXT TOWERS; a path may have a colon too."""
    path, weights = item, list[float]()
    while len(weights) < 2:
        rest, colon, last = path.rpartition(":")
        try:
            weights.insert(0, float(last))
        except ValueError:
            break
        if not colon:
            raise ValueError(f"--lora is {item!r}; FILE or FILE:WEIGHT is wanted")
        path = rest
    weight = weights[0] if weights else 1.0
    return path, weight, weights[-1] if weights else 1.0
