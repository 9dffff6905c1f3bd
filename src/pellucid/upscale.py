"""Making a finished picture larger: with a network, tile by tile, or with a filter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

from pellucid import cascade
from pellucid.esrgan import SRVGG, RRDBNet
from pellucid.hires import DIFFUSION, PICTURE
from pellucid.images.load import MAX_PIXELS, MAX_SIDE
from pellucid.images.pixels import to_pil, to_tensor
from pellucid.progress import stage

TILE = 192  # pixels of the small picture, on a side
REACH = 32  # how far around a tile the diffusion stage reads: beyond it nothing changes by a level


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
        larger = picture.resize(size_of(picture.size, self.scale), PICTURE[self.name])
        yield Enlarging(1, 1, larger)


Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the small picture."""


def in_tiles(
    picture: Image.Image, scale: float, tile: int, larger_part: Callable[[Box], Image.Image]
) -> Iterator[Enlarging]:
    """Put together what `larger_part` gives for each tile, so that memory does not grow with the
    picture."""
    boxes = [
        (left, top, min(left + tile, picture.width), min(top + tile, picture.height))
        for top in range(0, picture.height, tile)
        for left in range(0, picture.width, tile)
    ]
    larger = Image.new("RGB", size_of(picture.size, scale))
    for done, box in enumerate(boxes, start=1):
        larger.paste(larger_part(box), (round(box[0] * scale), round(box[1] * scale)))
        yield Enlarging(done, len(boxes), larger if done == len(boxes) else None)


def around(picture: Image.Image, box: Box, reach: int, unit: int) -> Box:
    """The box with the pixels around it that a network sees; left and top are multiples of `unit`."""
    left, top = (max(side - reach, 0) // unit * unit for side in box[:2])
    return left, top, min(box[2] + reach, picture.width), min(box[3] + reach, picture.height)


def cut(large: Tensor, box: Box, seen: Box, scale: float) -> Image.Image:
    """The part for `box` of the result (3, H, W) for `seen`."""
    x, y = round((box[0] - seen[0]) * scale), round((box[1] - seen[1]) * scale)
    width, height = size_of((box[2] - box[0], box[3] - box[1]), scale)
    return to_pil(large[:, y : y + height, x : x + width])


@dataclass(frozen=True)
class NetworkUpscaler:
    """An upscaler of the ESRGAN family, which works in tiles.

    tile: pixels on a side, of the small picture.
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
        yield from in_tiles(picture, self.scale, self.tile, lambda box: self._tile(picture, box))

    def _tile(self, picture: Image.Image, box: Box) -> Image.Image:
        fold = self.network.config.shuffle
        seen = around(picture, box, self.network.config.reach, fold)
        pixels = to_tensor(picture.crop(seen))[None].add(1).div(2)
        pad = (-pixels.shape[3] % fold, -pixels.shape[2] % fold)
        pixels = F.pad(pixels, (0, pad[0], 0, pad[1]), mode="replicate")
        first = next(self.network.parameters())
        result = self.network(pixels.to(first.device, first.dtype))[0]
        return cut(result.float().mul(2).sub(1), box, seen, self.scale)


@dataclass(frozen=True)
class DiffusionUpscaler:
    """The super-resolution stage of a model (`cascade`), on any picture, in tiles.

    The same picture always gives the same result. tile: pixels on a side, of the small picture, a
    multiple of the period of the network's grid.
    """

    network: cascade.SuperResolution
    name: str = DIFFUSION
    tile: int = TILE

    @property
    def scale(self) -> float:
        """As in `Upscaler`."""
        return float(self.network.config.factor)

    @torch.no_grad()
    def enlarge(self, picture: Image.Image) -> Iterator[Enlarging]:
        """As in `Upscaler`. ValueError: the network gives numbers that are not finite."""
        config, side = self.network.config, TILE * self.network.config.factor
        shape = (1, config.in_channels, side, side)
        # It is repeated over the picture, so two tiles have the same noise where both see it.
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        yield from in_tiles(
            picture, self.scale, self.tile, lambda box: self._tile(picture, box, noise)
        )

    def _tile(self, picture: Image.Image, box: Box, noise: Tensor) -> Image.Image:
        config, first = self.network.config, next(self.network.parameters())
        unit = math.lcm(max(config.period, 1), 2 ** (len(config.block_out_channels) - 1))
        seen = around(picture, box, REACH, unit)
        small = to_tensor(picture.crop(seen))[None].to(first.device)
        rows, columns = (
            torch.arange(start * config.factor, end * config.factor) % noise.shape[2]
            for start, end in ((seen[1], seen[3]), (seen[0], seen[2]))
        )
        own = noise[:, :, rows][:, :, :, columns].to(first.device)
        *_, last = cascade.sample(self.network, small, own)
        return cut(last.large[0], box, seen, self.scale)


def enlarged(upscaler: Upscaler, picture: Image.Image) -> Image.Image:
    """An RGB picture, enlarged by the upscaler's own factor."""
    with stage("enlarging the picture, tile") as now:
        for last in upscaler.enlarge(picture):
            now.total, now.done = last.total, last.done
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
    upscaler's own. Transparency is enlarged as a grey picture.
    """
    size = size_of(picture.size, upscaler.scale if scale is None else scale)
    layers = [picture.convert("RGB")]
    if picture.mode == "RGBA":
        alpha = picture.getchannel("A")
        layers = [filled(picture), Image.merge("RGB", [alpha] * 3)]
    larger = []
    for number, layer in enumerate(layers):
        for step in upscaler.enlarge(layer):
            done, total = number * step.total + step.done, len(layers) * step.total
            if step.picture is None:
                yield Enlarging(done, total)
            elif step.picture.size == size:
                larger.append(step.picture)
            else:
                larger.append(step.picture.resize(size, Image.Resampling.LANCZOS))
            if step.picture is not None and number < len(layers) - 1:
                yield Enlarging(done, total)
    result = larger[0]
    if len(larger) > 1:
        result = result.copy()
        result.putalpha(limited(larger[1].getchannel("R"), alpha))
    yield Enlarging(total, total, result)


def filled(picture: Image.Image) -> Image.Image:
    """An RGBA picture as RGB, in which transparent pixels have the colours next to them.

    Many files have black there, which would become a dark line around the drawing.
    """
    near = picture.convert("RGBa").filter(ImageFilter.GaussianBlur(2)).convert("RGBA")
    return Image.composite(picture, near, picture.getchannel("A")).convert("RGB")


def limited(large: Image.Image, small: Image.Image) -> Image.Image:
    """An enlarged alpha channel between the least and the most that the small one has nearby, so that
    what is clear stays clear."""
    least, most = (
        small.filter(kind(3)).resize(large.size, Image.Resampling.NEAREST)
        for kind in (ImageFilter.MinFilter, ImageFilter.MaxFilter)
    )
    return ImageChops.darker(ImageChops.lighter(large, least), most)
