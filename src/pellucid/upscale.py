"""Making a finished picture larger: with a network, tile by tile, or with a filter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from PIL import Image

from pellucid.esrgan import SRVGG, RRDBNet
from pellucid.images.load import MAX_PIXELS, MAX_SIDE
from pellucid.images.pixels import to_pil, to_tensor

TILE = 192  # pixels of the small picture, on a side
FILTERS = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}


class Enlarging(NamedTuple):
    """How far an upscaler is, and the result at the end."""

    done: int
    total: int
    picture: Image.Image | None = None


class Upscaler(Protocol):
    """What makes a picture larger."""

    @property
    def name(self) -> str:
        """As it is recorded in pictures."""

    @property
    def scale(self) -> float:
        """By how much its result is larger."""

    def enlarge(self, picture: Image.Image) -> Iterator[Enlarging]:
        """Enlarge an RGB picture, and report after each part; the last report has the result."""


@dataclass(frozen=True)
class Filter:
    """An upscaler that computes each pixel from those around it, and adds no detail."""

    name: str
    scale: float = 2.0

    def enlarge(self, picture: Image.Image) -> Iterator[Enlarging]:
        """As in `Upscaler`."""
        larger = picture.resize(size_of(picture.size, self.scale), FILTERS[self.name])
        yield Enlarging(1, 1, larger)


@dataclass(frozen=True)
class NetworkUpscaler:
    """An upscaler of the ESRGAN family.

    A picture goes through the network in tiles, each with the pixels around it that the network sees,
    so that memory does not grow with the picture. tile: pixels on a side, of the small picture.
    """

    name: str
    network: RRDBNet | SRVGG
    tile: int = TILE

    @property
    def scale(self) -> float:
        """As in `Upscaler`."""
        return float(self.network.config.scale)

    @torch.no_grad()
    def enlarge(self, picture: Image.Image) -> Iterator[Enlarging]:
        """As in `Upscaler`. ValueError: the network gives numbers that are not finite."""
        step = self.tile
        boxes = [
            (left, top, min(left + step, picture.width), min(top + step, picture.height))
            for top in range(0, picture.height, step)
            for left in range(0, picture.width, step)
        ]
        larger = Image.new("RGB", size_of(picture.size, self.scale))
        for done, box in enumerate(boxes, start=1):
            part = self._tile(picture, box)
            larger.paste(part, (round(box[0] * self.scale), round(box[1] * self.scale)))
            yield Enlarging(done, len(boxes), larger if done == len(boxes) else None)

    def _tile(self, picture: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
        """The part of the result for this box (left, top, right, bottom) of the small picture."""
        reach, fold = self.network.config.reach, self.network.config.shuffle
        left, top = (max(side - reach, 0) // fold * fold for side in box[:2])
        right, bottom = min(box[2] + reach, picture.width), min(box[3] + reach, picture.height)
        pixels = to_tensor(picture.crop((left, top, right, bottom)))[None].add(1).div(2)
        pad = (-(right - left) % fold, -(bottom - top) % fold)
        pixels = F.pad(pixels, (0, pad[0], 0, pad[1]), mode="replicate")
        first = next(self.network.parameters())
        result = self.network(pixels.to(first.device, first.dtype))[0]
        x, y = round((box[0] - left) * self.scale), round((box[1] - top) * self.scale)
        width, height = size_of((box[2] - box[0], box[3] - box[1]), self.scale)
        return to_pil(result[:, y : y + height, x : x + width].float().mul(2).sub(1))


def enlarged(upscaler: Upscaler, picture: Image.Image) -> Image.Image:
    """An RGB picture, enlarged by the upscaler's own factor."""
    *_, last = upscaler.enlarge(picture)
    assert last.picture is not None
    return last.picture


def size_of(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Width and height of a picture that is enlarged by this factor."""
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def check_size(name: str, size: tuple[int, int], scale: float) -> None:
    """ValueError if the result would be too large."""
    width, height = size_of(size, scale)
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise ValueError(
            f"{name} would have {width}x{height} pixels at scale {scale:g}; at most {MAX_SIDE} on a "
            f"side and {MAX_PIXELS // 1_000_000} million in all are allowed"
        )


def upscale(
    upscaler: Upscaler, picture: Image.Image, scale: float | None = None
) -> Iterator[Enlarging]:
    """Enlarge an RGB or RGBA picture; the last report has the result.

    scale: the factor; what the upscaler gives is then resized to it with a Lanczos filter. None: the
    upscaler's own. Transparency is enlarged with that filter.
    """
    scale = upscaler.scale if scale is None else scale
    size = size_of(picture.size, scale)
    for step in upscaler.enlarge(picture.convert("RGB")):
        if step.picture is None:
            yield step
            continue
        result = step.picture
        if result.size != size:
            result = result.resize(size, Image.Resampling.LANCZOS)
        if picture.mode == "RGBA":
            result = result.copy()
            result.putalpha(picture.getchannel("A").resize(size, Image.Resampling.LANCZOS))
        yield Enlarging(step.done, step.total, result)
