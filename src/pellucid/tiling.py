"""A convolutional network over a large picture in tiles of whole rows, to save memory.

The usual way, tiles that overlap, leaves seams: a group norm that sees one tile measures that tile,
so each tile gets its own contrast. Measuring a smaller picture or a sample of positions gives all
tiles one contrast, which is off by some percent. Here the network goes through the picture layer by
layer, and only the values between two residual blocks are held whole. A norm measures all tiles
first, and a convolution reads one more row on either side. The group norm is exact: the result is
that of the whole picture at once except for rounding, and no blending is needed. The cost: half of
the convolutions are computed twice, once for the norm that follows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.nn import Downsample, ResidualBlock, Upsample
from pellucid.progress import each

TILE_SIZE = 2**15
"""Positions (rows times width) in a tile."""


@dataclass(frozen=True)
class Tiled:
    """A picture or a layer's output that is computed when it is read."""

    height: int
    width: int
    rows: Callable[[int, int], Tensor]
    """Rows start .. end (excluded), (B, C, end - start, width)."""
    tile_size: int = TILE_SIZE

    @property
    def step(self) -> int:
        """The rows of a tile."""
        return max(1, self.tile_size // self.width)

    def __len__(self) -> int:
        return -(-self.height // self.step)

    def __iter__(self) -> Iterator[Tensor]:
        """All rows, tile by tile."""
        step = self.step
        for start in range(0, self.height, step):
            yield self.rows(start, min(start + step, self.height))


def split(x: Tensor, tile_size: int = TILE_SIZE) -> Tiled:
    """(B, C, h, w) in tiles of at most `tile_size` positions, but at least one row."""
    return Tiled(x.shape[2], x.shape[3], lambda start, end: x[:, :, start:end], tile_size)


def join(x: Tiled) -> Tensor:
    """Compute all tiles and put them together, (B, C, h, w)."""
    out: Tensor | None = None
    start = 0
    for part in each("tile", x):
        if out is None:
            last = part.is_contiguous(memory_format=torch.channels_last)
            out = torch.empty(
                (*part.shape[:2], x.height, x.width),
                dtype=part.dtype,
                device=part.device,
                memory_format=torch.channels_last if last else torch.contiguous_format,
            )
        out[:, :, start : start + part.shape[2]] = part
        start += part.shape[2]
    assert out is not None
    return out


def compute(x: Tiled) -> Tiled:
    """Compute all tiles once and hold them, so that they can be read several times."""
    return split(join(x), x.tile_size)


def convolution(x: Tiled, layer: nn.Conv2d) -> Tiled:
    """A convolution with stride 1 that keeps the size."""
    edge = layer.kernel_size[0] // 2

    def rows(start: int, end: int) -> Tensor:
        above, below = max(edge - start, 0), max(end + edge - x.height, 0)  # rows of zeros
        part = x.rows(start - edge + above, end + edge - below)
        return F.conv2d(F.pad(part, (edge, edge, above, below)), layer.weight, layer.bias)

    return replace(x, rows=rows)


def exact(x: Tensor) -> Tensor:
    """At least float32, in which norms are computed."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def norm_silu(x: Tiled, norm: nn.GroupNorm) -> Tiled:
    """Group norm, with the statistics of the whole, and SiLU. Reads `x` once."""
    counts, means, variances = [], [], []
    for part in x:
        var, mean = torch.var_mean(
            exact(part).unflatten(1, (norm.num_groups, -1)), dim=(2, 3, 4), correction=0
        )
        counts.append(part.shape[2])
        means.append(mean)
        variances.append(var)
    share = means[0].new_tensor(counts) / x.height
    stacked = torch.stack(means, dim=-1)  # (B, groups, tiles)
    mean = (stacked * share).sum(-1)
    # The variance of the whole: within the tiles, plus between them.
    var = ((torch.stack(variances, dim=-1) + (stacked - mean[..., None]).square()) * share).sum(-1)

    width = norm.num_channels // norm.num_groups
    factor = (var + norm.eps).rsqrt().repeat_interleave(width, dim=1) * norm.weight
    offset = norm.bias - mean.repeat_interleave(width, dim=1) * factor
    factor, offset = factor[:, :, None, None], offset[:, :, None, None]

    def rows(start: int, end: int) -> Tensor:
        part = x.rows(start, end)
        return F.silu(torch.addcmul(offset, exact(part), factor).to(part.dtype), inplace=True)

    return replace(x, rows=rows)


def residual(x: Tiled, block: ResidualBlock) -> Tiled:
    """A residual block without time. It reads `x` several times: `compute` it first."""
    h = convolution(norm_silu(x, block.norm1), block.conv1)
    h = convolution(norm_silu(h, block.norm2), block.conv2)

    def rows(start: int, end: int) -> Tensor:
        part = x.rows(start, end)
        return h.rows(start, end).add_(
            part if block.conv_shortcut is None else block.conv_shortcut(part)
        )

    return replace(x, rows=rows)


def upsample(x: Tiled, layer: Upsample) -> Tiled:
    """Twice the height and width."""

    def nearest(start: int, end: int) -> Tensor:
        first = start // 2
        part = F.interpolate(x.rows(first, (end + 1) // 2), scale_factor=2.0, mode="nearest")
        return part[:, :, start - 2 * first : end - 2 * first]

    return convolution(replace(x, height=2 * x.height, width=2 * x.width, rows=nearest), layer.conv)


def downsample(x: Tiled, layer: Downsample) -> Tiled:
    """Half the height and width, both even, with the autoencoder's padding (not `layer.symmetric`)."""
    conv = layer.conv

    def rows(start: int, end: int) -> Tensor:
        below = max(2 * end + 1 - x.height, 0)
        part = x.rows(2 * start, 2 * end + 1 - below)
        return F.conv2d(F.pad(part, (0, 1, 0, below)), conv.weight, conv.bias, stride=2)

    return replace(x, height=x.height // 2, width=x.width // 2, rows=rows)
