"""The decoder: from latents to pixels."""

from __future__ import annotations

from pellucid.explain.run.record import Explanation
from pellucid.explain.run.sections._section import Content, Section
from pellucid.model import Model
from pellucid.vae import VAE

SECTION = Section(100, "end", "From latents to pixels", "Decoder", "latents to pixels", "picture")


def content(model: Model, run: Explanation) -> Content:
    return Content(
        "<p>When the noise is gone, the decoder of the autoencoder turns the latents into the "
        "picture, once. The small pictures on this page show the latents of each step in the same "
        "way.</p>",
        "picture = D(x<sub>0</sub> / scale + shift)",
        [VAE.decode],
    )
