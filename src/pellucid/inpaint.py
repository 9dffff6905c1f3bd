"""Inpainting: a part of a picture is redrawn, and the rest stays as it was.

The mask is used twice. The network sees what stays: a model for inpainting as further input channels
(Rombach et al. 2022, section 4.5), an ordinary one because every estimate of x0 is overwritten
there. In the end the pixels outside of the mask are taken from the picture itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageFilter, ImageOps
from torch import Tensor

from pellucid.diffusion import Conditioning, Network
from pellucid.guidance import GuidedDenoiser
from pellucid.images.load import MAX_PIXELS, Mask, open_mask
from pellucid.images.pixels import fit, to_tensor
from pellucid.messages import FieldMessage
from pellucid.model import Model
from pellucid.request import Request, ResolvedRequest

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True, eq=False)
class Canvas:
    """A picture to start from, and which part of it is redrawn.

    picture: RGB, of the result's size. mask: "L", of the same size, 255 where it is redrawn;
    None: everywhere. box: the part that the network sees; where it goes beyond the picture, the edge
    is repeated. size: width and height at which the network draws that part.
    """

    picture: Image.Image
    mask: Image.Image | None
    box: Box
    size: tuple[int, int]
    warnings: tuple[str, ...] = ()
    """How a mask was read that can be read in two ways."""

    @cached_property
    def pixels(self) -> Tensor:
        """What the network sees, (1, 3, H, W) in [-1, 1]."""
        return to_tensor(self._view(self.picture))[None]

    @cached_property
    def weights(self) -> Tensor:
        """How much is redrawn at each of these pixels, (1, 1, H, W) in [0, 1]."""
        if self.mask is None:
            return torch.ones(1, 1, self.size[1], self.size[0])
        view = np.array(self._view(self.mask))
        return torch.from_numpy(view)[None, None].float() / 255

    def latent_weights(self, unit: int) -> Tensor:
        """The mean of `weights` over each latent's `unit` x `unit` pixels, (1, 1, h, w)."""
        return F.avg_pool2d(self.weights, unit)

    def paste(self, drawn: Image.Image) -> Image.Image:
        """The whole picture with what was drawn, blended by the mask; bit for bit where that is 0."""
        if self.mask is None:
            return drawn
        left, top, right, bottom = self.box
        if drawn.size != (right - left, bottom - top):
            drawn = drawn.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        layer = self.picture.copy()
        layer.paste(drawn, (left, top))
        return Image.composite(layer, self.picture, self.mask)

    def _view(self, image: Image.Image) -> Image.Image:
        view = crop(image, self.box)
        return view if view.size == self.size else view.resize(self.size, Image.Resampling.LANCZOS)


def prepare(request: ResolvedRequest, unit: int) -> Canvas:
    """The canvas of a request with a picture to start from.

    unit: the network draws multiples of this many pixels; a picture of another size is extended at
    its right and bottom edges, and cropped at the end. With a second stage the picture is made smaller
    for the network. Raises ValueError: a mask that cannot be
    read, a mask of another size than the picture, a mask that marks nothing.
    """
    assert request.picture is not None
    picture, full, drawn = request.picture, (request.width, request.height), request.drawn_size
    if not request.masked:
        return Canvas(fit(picture, *full), None, (0, 0, *full), drawn)
    left, top, right, bottom = request.extend
    small, box = picture.size, (-left, -top, picture.width + right, picture.height + bottom)
    picture = crop(picture, box)
    mask, reading = mask_of(request, small)
    warnings = () if reading is None else (reading,)
    if not request.only_masked and picture.size != full:
        picture = fit(picture, *full)
        mask = ImageOps.fit(mask, full, Image.Resampling.BILINEAR)
    marked = mask.getbbox()
    if marked is None:
        raise ValueError(f"{request.mask}: the mask is empty: no pixel is white or transparent")
    if request.only_masked:
        return Canvas(
            picture, mask, around(marked, request.padding, full, picture.size), drawn, warnings
        )
    if drawn != full:
        return Canvas(picture, mask, (0, 0, *full), drawn, warnings)
    size = (-(-full[0] // unit) * unit, -(-full[1] // unit) * unit)
    return Canvas(picture, mask, (0, 0, *size), size, warnings)


def mask_of(request: Request, size: tuple[int, int]) -> Mask:
    """The mask of a picture of this size after it is extended: inverted, grown, blurred.

    Raises ValueError if the mask has another size.
    """
    width, height = size
    mask, reading = Image.new("L", size), None
    if request.mask is not None:
        mask, reading = open_mask(request.mask)
        if mask.size != size:
            raise ValueError(
                f"the mask {request.mask} is {mask.width}x{mask.height} and the picture "
                f"{request.image} is {width}x{height}; they must have the same size"
            )
    if reading is not None:
        inverted = ", inverted" if request.mask_invert else "; {mask_invert} inverts that"
        reading = FieldMessage(
            "the mask {file} is read by its transparency: {reading}" + inverted,
            file=request.mask,
            reading=reading,
        )
    if request.mask_invert:
        mask = ImageChops.invert(mask)
    left, top, right, bottom = request.extend
    whole = Image.new("L", (left + width + right, top + height + bottom), 255)
    whole.paste(mask, (left, top))
    grown = grow(whole, request.mask_grow)
    blurred = grown.filter(ImageFilter.GaussianBlur(request.mask_blur))
    # Half of a blur lies within the edge. Doubled, it begins at the edge, as in A1111, and all of
    # the marked part is drawn.
    return Mask(ImageChops.lighter(grown, ImageChops.add(blurred, blurred)), reading)


def grow(mask: Image.Image, pixels: int) -> Image.Image:
    """Each value spread over a square, by `pixels` on every side."""
    if pixels == 0 or mask.getbbox() is None:
        return mask
    values = torch.from_numpy(np.array(mask))[None].float()
    for kernel, pad in (((1, 2 * pixels + 1), (0, pixels)), ((2 * pixels + 1, 1), (pixels, 0))):
        values = F.max_pool2d(values, kernel, stride=1, padding=pad)
    return Image.fromarray(values[0].byte().numpy())


def crop(image: Image.Image, box: Box) -> Image.Image:
    """A part of a picture; beyond the picture, its edge is repeated. ValueError for more than
    MAX_PIXELS."""
    left, top, right, bottom = box
    if (right - left) * (bottom - top) > MAX_PIXELS:
        raise ValueError(
            f"a part of {right - left}x{bottom - top} pixels is too large; at most "
            f"{MAX_PIXELS // 1_000_000} million are allowed"
        )
    if box == (0, 0, *image.size):
        return image
    rows = np.arange(top, bottom).clip(0, image.height - 1)
    columns = np.arange(left, right).clip(0, image.width - 1)
    return Image.fromarray(np.asarray(image)[rows][:, columns])


def around(marked: Box, padding: int, shape: tuple[int, int], whole: tuple[int, int]) -> Box:
    """A box of the aspect ratio of `shape` around `marked` and its padding, inside `whole` if it fits.

    shape, whole: width and height.
    """
    left, top = max(marked[0] - padding, 0), max(marked[1] - padding, 0)
    right, bottom = min(marked[2] + padding, whole[0]), min(marked[3] + padding, whole[1])
    width = max(right - left, round((bottom - top) * shape[0] / shape[1]))
    height = max(bottom - top, round((right - left) * shape[1] / shape[0]))
    left = _within((left + right - width) // 2, width, whole[0])
    top = _within((top + bottom - height) // 2, height, whole[1])
    return left, top, left + width, top + height


def _within(start: int, length: int, whole: int) -> int:
    if length > whole:
        return (whole - length) // 2
    return min(max(start, 0), whole - length)


def surroundings(pixels: Tensor, known: Tensor) -> Tensor:
    """Pixels (B, C, H, W), filled in smoothly where `known` (B, 1, H, W) in [0, 1] is below 1.

    Pull-push: means of the known pixels at half the size, a quarter ..., and back (Gortler et al.
    1996, "The Lumigraph", section 3.4).
    """
    height, width = pixels.shape[2:]
    if bool(known.min() == 1) or max(height, width) == 1:
        return pixels
    share, sums = (_halved(part) for part in (known, known * pixels))
    coarse = surroundings(sums / share.clamp(min=1e-6), (4 * share).clamp(max=1))
    wide = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return known * pixels + (1 - known) * wide


def _halved(x: Tensor) -> Tensor:
    """Means over 4 x 4 that overlap by half, so that no edge is a block border at every size."""
    height, width = x.shape[2:]
    return F.avg_pool2d(F.pad(x, (1, 1 + width % 2, 1, 1 + height % 2)), 4, stride=2)


# ---------------------------------------------------------------- the network's side


def sees_masks(model: Model) -> bool:
    """Whether the network takes a mask and a masked picture next to x.

    Raises ValueError for a number of input channels that is neither that nor x's own.
    """
    latent = model.vae.config.latent_channels
    config = model.config
    channels = getattr(config, "in_channels", latent)
    if channels == 2 * latent:
        raise ValueError(
            f"{model.title} edits pictures by instruction (InstructPix2Pix: its network has "
            f"{channels} input channels), which is not supported"
        )
    if channels not in (latent, 2 * latent + 1):
        raise ValueError(
            f"the network of {model.title} has {channels} input channels; it must have {latent}, or "
            f"{2 * latent + 1} for inpainting"
        )
    return channels == 2 * latent + 1


def masked_pixels(canvas: Canvas) -> Tensor:
    """What a network for inpainting sees, (1, 3, H, W): grey, which is 0, where it draws."""
    return canvas.pixels * (canvas.weights < 0.5)


def mask_channel(canvas: Canvas, unit: int) -> Tensor:
    """The mask as a network for inpainting sees it, (1, 1, h, w): 1 where it draws, else 0."""
    return (canvas.weights >= 0.5).float()[:, :, ::unit, ::unit]


def with_channels(network: Network, extra: Tensor) -> Network:
    """The network with `extra` (1, C, h, w) in the channels after x's, as it was trained."""

    def extended(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return network(torch.cat([x, extra.expand(len(x), -1, -1, -1)], dim=1), t, cond)

    return extended


@dataclass(frozen=True, eq=False)
class Keep:
    """Keeps the original outside of the mask, for a network that does not see masks itself.

    original: (1, C, h, w) latents; weights: (1, 1, h, w), 1 where the picture is redrawn.
    """

    original: Tensor
    weights: Tensor

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents with the original outside of the mask."""
        return torch.lerp(self.original.expand_as(latents), latents, self.weights)

    def around(self, guided: GuidedDenoiser) -> GuidedDenoiser:
        """The guided denoiser with the original in every estimate of x0.

        So x stays a noisy version of the original there, and what is drawn has to fit it. In
        one-step methods this equals putting the noisy original into x (Lugmayr et al. 2022,
        "RePaint", eq. 8); multistep methods keep a consistent history.
        """
        return lambda x, level: guided(x, level).map(self)


def keep_of(model: Model, canvas: Canvas | None, original: Tensor) -> Keep | None:
    """What keeps the rest of the canvas, whose latents are `original`; None where nothing is kept,
    or the network sees the mask."""
    if canvas is None or canvas.mask is None or sees_masks(model):
        return None
    weights = canvas.latent_weights(model.vae.config.downsample).to(original)
    return Keep(original, weights)
