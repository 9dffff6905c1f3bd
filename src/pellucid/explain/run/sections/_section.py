"""What a section of the page of a run is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pellucid.explain.run.record import Explanation
from pellucid.model import Model

Stage = Literal["text", "start", "loop", "end"]
"""Where the part stands in the chain: before the picture, its first noise, every step, the end."""


@dataclass(frozen=True)
class Section:
    """What the overview of the page says of a section.

    order: the sections stand in this order. picture: what its box shows, the name of a picture of
    the run or of the step in the data of the page.
    """

    order: int
    stage: Stage
    title: str
    box: str
    about: str
    picture: str | None = None


@dataclass(frozen=True)
class Content:
    """The section of one run. text, equation: HTML. sources: functions whose source it shows.

    data: JSON for its JavaScript, in `run.sections[name]`.
    """

    text: str
    equation: str
    sources: Sequence[Callable[..., object]]
    data: dict[str, Any] = field(default_factory=dict)


class SectionModule(Protocol):
    """A file of `sections/`."""

    SECTION: Section

    def content(self, model: Model, run: Explanation) -> Content | None:
        """None: this run has no such part."""
