"""The things of a canvas are cut out and put together."""

from __future__ import annotations

from typing import Any

from PIL import Image

from pellucid import cascade, layers
from pellucid.explain.run.record import Explanation
from pellucid.explain.run.sections._section import Content, Section
from pellucid.images import matte
from pellucid.images.data_url import to_data_url
from pellucid.images.pixels import to_pil
from pellucid.model import Model

SECTION = Section(
    115, "end", "From the canvas to the picture", "Layers", "cut out, put together", "picture"
)
SIDE = 256  # pixels of a picture in the page, at most
BEHIND = (200, 200, 205)  # shows where nothing is


def content(model: Model, run: Explanation) -> Content | None:
    if run.request.layout is None:
        return None
    return Content(
        "<p>The network draws best on white. So each thing was drawn on white, in its own region of a "
        "canvas. Now the things are cut out, and put where the prompt says: in front of each other, "
        "larger or smaller, on a painted ground. No network has a part in that. Ground is what is "
        "nearly white and connected with the border; at an edge, a pixel C mixes the thing F and the "
        "white ground B, and α says how much of it is the thing.</p>",
        "C = α F + (1 − α) B",
        [layers.composed, matte.matte],
        data_of(model, run),
    )


def data_of(model: Model, run: Explanation) -> dict[str, Any]:
    """The canvas, and what is cut out of it; nothing where the small picture was asked for."""
    if model.second_stage is None or not run.upscaling:
        return {}
    config, call = model.second_stage.config, run.upscaling[-1]
    large = cascade.to_large(call.residual[None], call.small[None], config)
    canvas = to_pil(cascade.sharpened(large, config.sharpen)[0])
    cut = Image.new("RGBA", canvas.size, (*BEHIND, 255))
    cut.alpha_composite(matte.cut_out(canvas))
    pictures = {"canvas": canvas, "cut": cut.convert("RGB")}
    for picture in pictures.values():
        picture.thumbnail((SIDE, SIDE))
    return {name: to_data_url(picture) for name, picture in pictures.items()}
