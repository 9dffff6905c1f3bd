"""What ``pellucid generate`` has drawn, as files and as lines on the output."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

from pellucid.cli._app import report, show_json, show_path
from pellucid.cli._draw import Drawn, DrawOptions
from pellucid.cli._files import Output, save_film
from pellucid.cli._options import option_of
from pellucid.cli._process import held_signals
from pellucid.messages import written

if TYPE_CHECKING:
    from PIL.Image import Image


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
