"""The path of the sampler from noise to picture."""

from __future__ import annotations

from html import escape

from pellucid import samplers
from pellucid.explain.run.record import Explanation, project
from pellucid.explain.run.sections._section import Content, Section
from pellucid.model import Model

SECTION = Section(
    90, "loop", "The path from noise to picture", "Sampler", "one step less noisy", "x"
)


def content(model: Model, run: Explanation) -> Content:
    name = run.request.sampler or ""
    sampler = samplers.get(name)
    return Content(
        "<p>The latents are one point in a space of many dimensions, and the run is a path through "
        "it. This is the projection of the path onto the plane with the largest variance. The line "
        "is x<sub>t</sub>; the dashed line is the estimate x̂<sub>0</sub>, which changes less and "
        f"less until both meet. The sampler was <code>{escape(name)}</code>; this is the "
        "documentation in its file:</p>"
        f'<pre class="words" tabindex="0">{escape(sampler.doc)}</pre>',
        "plane = the first two principal components of all points of the run",
        [sampler.sample, project],
    )
