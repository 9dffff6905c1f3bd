"""Prompts for parts of a picture, each drawn by itself on one canvas.

Every step cuts the regions out of x, lets the network estimate each with its own prompt, and puts
the estimates back where they came from. Between the regions the picture is plain, like their
corners. This is MultiDiffusion (Bar-Tal et al. 2023, arXiv:2302.08113, section 4.2) for regions that
do not overlap, where its least-squares solution (equation 5) is each region's own estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.arrangement import Region
from pellucid.guidance import GuidedDenoiser, Parts
from pellucid.schedule import Level


@dataclass(frozen=True, eq=False)
class Regional:
    """Guidance of each region by itself.

    guide: gets the regions of all pictures in one batch, the first region of every picture, then the
        second, ...; all regions have one size. regions: on the canvas.
    """

    guide: GuidedDenoiser
    regions: Sequence[Region]

    def __call__(self, x: Tensor, level: Level) -> Parts:
        """The estimates, of x's shape."""
        boxes = [box(region, *x.shape[2:]) for region in self.regions]
        parts = self.guide(torch.cat([x[..., rows, columns] for rows, columns in boxes]), level)

        def whole(estimates: Tensor) -> Tensor:
            each = estimates.chunk(len(boxes))
            canvas = ground(each).expand_as(x).clone()
            for (rows, columns), own in zip(boxes, each, strict=True):
                canvas[..., rows, columns] = own
            return canvas

        return parts.map(whole)


def ground(regions: Sequence[Tensor]) -> Tensor:
    """What lies between regions, each (B, C, h, w): as their most typical corner is, (B, C, 1, 1).

    That is the corner nearest to the median of all. The median itself takes each channel from another
    corner, and may decode to a colour that none of them has. It is averaged with the positions at the
    borders that are most like it: one position, repeated, shows its small errors as a pattern.
    """
    corners = torch.cat([each[..., [0, 0, -1, -1], [0, -1, 0, -1]] for each in regions], dim=-1)
    median = corners.median(dim=-1, keepdim=True).values
    nearest = (corners - median).square().sum(dim=1).argmin(dim=-1)
    borders = torch.cat([_border(each) for each in regions], dim=-1)
    means = []
    for own, border, i in zip(corners, borders, nearest.tolist(), strict=True):
        distances = (border - own[:, i : i + 1]).square().sum(dim=0)
        alike = distances.topk(max(border.shape[-1] // 3, 1), largest=False).indices
        means.append(border[:, alike].mean(dim=-1))
    return torch.stack(means)[..., None, None]


def _border(x: Tensor) -> Tensor:
    """The outermost positions of (B, C, h, w) as (B, C, n)."""
    sides = (x[..., 0, :], x[..., -1, :], x[..., 1:-1, 0], x[..., 1:-1, -1])
    return torch.cat(sides, dim=-1)


def box(region: Region, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a region on a canvas of this many positions."""
    top, left = round(region.top * height), round(region.left * width)
    return (
        slice(top, top + round(region.height * height)),
        slice(left, left + round(region.width * width)),
    )
