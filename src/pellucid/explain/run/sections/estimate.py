"""The estimate of the picture at every step."""

from __future__ import annotations

from pellucid.diffusion import to_x0
from pellucid.explain.run.record import Explanation
from pellucid.explain.run.sections._section import Content, Section
from pellucid.model import Model

SECTION = Section(
    50, "loop", "An estimate at every step", "Estimate", "the picture behind it", "x0"
)

# How the estimate follows from the network's output, by prediction; `diffusion.to_x0`.
X0 = {
    "eps": "x̂<sub>0</sub> = (x − σ ε̂) / α &emsp; the network predicts the noise ε̂",
    "x0": "x̂<sub>0</sub> is what the network predicts",
    "v": "x̂<sub>0</sub> = α x − σ v̂ &emsp; the network predicts v = α ε − σ x<sub>0</sub>",
    "flow": "x̂<sub>0</sub> = (x − σ û) / (α + σ) &emsp; the network predicts the direction from picture "
    "to noise, u = ε − x<sub>0</sub>",
}


def content(model: Model, run: Explanation) -> Content:
    return Content(
        "<p>At every step the network receives the noisy latents x<sub>t</sub> and the text. Its "
        "output gives an estimate x̂<sub>0</sub> of the finished picture. Early estimates are "
        "blurred, because many pictures are possible. The sampler does not jump to the estimate. It "
        "moves a little towards it, and the network is evaluated again with less noise.</p>",
        "x<sub>t</sub> = α<sub>t</sub> x<sub>0</sub> + σ<sub>t</sub> ε &emsp; therefore &emsp; "
        f"{X0[run.prediction]}; &emsp; share of picture = α / (α + σ)",
        [to_x0],
    )
