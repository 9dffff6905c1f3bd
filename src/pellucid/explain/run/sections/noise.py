"""The first noise."""

from __future__ import annotations

from pellucid import noise
from pellucid.explain.run.record import Explanation
from pellucid.explain.run.sections._section import Content, Section
from pellucid.model import Model

SECTION = Section(30, "start", "The start is noise", "Noise", "from the seed", "startPicture")

# How a run starts: from noise alone, or from a picture with added noise.
START = {
    False: ("At the start every number in them is random.", "x<sub>T</sub> = σ<sub>T</sub> ε,"),
    True: (
        "This run started from a picture: its latents x<sub>0</sub>, with random numbers added to "
        "all of them.",
        "x = α x<sub>0</sub> + σ ε,",
    ),
}


def content(model: Model, run: Explanation) -> Content:
    start, equation = START[run.request.image is not None]
    return Content(
        "<p>The picture is not made of pixels but of <em>latents</em>, a smaller stack of channels "
        f"that a decoder turns into pixels. {start} The seed determines the random numbers: the "
        "same seed gives the same noise, and with the same prompt the same picture.</p>",
        f"{equation} &emsp; ε ~ N(0, 1), independent for every number",
        [noise.draw],
    )
