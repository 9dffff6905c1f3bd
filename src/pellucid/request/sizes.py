"""The size of a picture, and the size at which a model draws it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from pellucid.messages import FieldMessage
from pellucid.request.request import MAX_SIDE, Request

if TYPE_CHECKING:
    from pellucid.model import Model

# Models of at least this width draw any size; a smaller one draws what it was trained on.
ANY_SIZE = 256
# With a second stage the shorter side is drawn at the model's own size, which limits the longer one.
MOST_RATIO = 8


def draws_any_size(model: Model) -> bool:
    """Whether a picture to start from keeps its own size."""
    return min(model.drawn_size) >= ANY_SIZE


def unit_of(model: Model) -> int:
    """Width and height must be multiples of this many pixels."""
    patch = getattr(getattr(model.backbone, "config", None), "patch_size", 1)
    return model.vae.config.downsample * patch


def drawn_size_of(model: Model, width: int, height: int) -> tuple[int, int]:
    """Width and height that the backbone draws for a result of this size.

    With a second stage, the shorter side is always the model's own, and the ratio of the sides is that
    of the result, as far as the backbone allows it. ValueError where the sides differ too much for that.
    """
    if model.second_stage is None:
        return width, height
    if max(width, height) > MOST_RATIO * min(width, height):
        raise ValueError(
            f"the longer side must be at most {MOST_RATIO} times the shorter one with this model, "
            f"got {width}x{height}"
        )
    scale, unit = min(model.drawn_size) / min(width, height), unit_of(model)
    return round(width * scale / unit) * unit, round(height * scale / unit) * unit


def size_of(model: Model, request: Request, picture: Image.Image | None) -> tuple[int, int]:
    """Width and height of the result before a second pass; with only_masked, of the part.

    picture: the request's image. ValueError for a size that is not a multiple of the unit, unless
    it is exactly that of a picture of which only a part is drawn, or a second stage makes it.
    """
    d, unit = model.defaults, 1 if model.second_stage is not None else unit_of(model)
    own, exact = (d.width, d.height), False
    if picture is not None and not request.only_masked:
        left, top, right, bottom = request.extend
        width, height = picture.width + left + right, picture.height + top + bottom
        exact = request.masked and (
            request.width in (None, width) and request.height in (None, height)
        )
        if exact:
            own = (width, height)
        elif request.masked or draws_any_size(model):
            own = (max(width // unit, 1) * unit, max(height // unit, 1) * unit)
    size = (
        own[0] if request.width is None else request.width,
        own[1] if request.height is None else request.height,
    )
    for side, pixels in zip(("width", "height"), size, strict=True):
        if pixels > MAX_SIDE:
            raise ValueError(
                FieldMessage(
                    "{picture} makes a {side} of {pixels}; at most {most} can be drawn, so {width} and "
                    "{height} have to be given",
                    picture=request.image,
                    side=side,
                    pixels=pixels,
                    most=MAX_SIDE,
                )
            )
        if pixels % unit and not exact:
            near = max(round(pixels / unit), 1) * unit
            raise ValueError(f"{side} must be a multiple of {unit}, such as {near}, got {pixels}")
    if request.hires is not None and max(size) * request.hires > MAX_SIDE:
        raise ValueError(
            FieldMessage(
                "{hires} {factor:g} makes {pixels:g} pixels of {longest}; at most {most} can be drawn",
                factor=request.hires,
                pixels=max(size) * request.hires,
                longest=max(size),
                most=MAX_SIDE,
            )
        )
    return size
