"""The time that the parts took."""

from __future__ import annotations

from pellucid.explain.run.record import Explanation
from pellucid.explain.run.sections._section import Content, Section
from pellucid.model import Model
from pellucid.pipeline import generate

SECTION = Section(200, "end", "The time it took", "Time", "what costs how much")


def content(model: Model, run: Explanation) -> Content:
    return Content(
        "<p>The text is encoded once and the picture decoded and enlarged once, but the network is "
        "evaluated at every step: this is why samplers that need fewer steps matter.</p>",
        "time = text + steps · evaluations per step · time of one evaluation + decoder + upscaler "
        "+ the rest",
        [generate],
    )
