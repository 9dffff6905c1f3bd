"""Guidance: with the text and without it."""

from __future__ import annotations

from pellucid.explain.run.record import Explanation
from pellucid.explain.run.sections._section import Content, Section
from pellucid.guidance import ClassifierFree
from pellucid.model import Model

SECTION = Section(
    80,
    "loop",
    "Guidance: with the text and without it",
    "Guidance",
    "what the words change",
    "cond",
)


def content(model: Model, run: Explanation) -> Content:
    return Content(
        "<p>The network is evaluated twice: once with the prompt, once without it (or with the "
        "negative prompt). The difference is what the prompt changes. Guidance exaggerates this "
        "difference, beyond what the network itself predicts. The upper row shows each estimate as "
        "a picture; the lower row shows the predicted noise in x<sub>t</sub>, one tile for each "
        "channel.</p>",
        "x̂<sub>0</sub> = x̂<sub>0</sub>(without) + s · (x̂<sub>0</sub>(with) − "
        "x̂<sub>0</sub>(without)), &emsp; s is the guidance scale; &emsp; ε̂ = (x<sub>t</sub> − α "
        "x̂<sub>0</sub>) / σ",
        [ClassifierFree.__call__],
    )
