"""Does a generator draw everything that it was trained on, and only that?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBOURS = 3


@dataclass(frozen=True)
class Coverage:
    """The figures of a set of samples.

    modes: how many kinds are among them; good_modes: among the good ones alone. kl: from the
    fraction of each kind to equal fractions, in nats; 0 is even. good: the fraction of samples that
    are what they should be. precision and recall: see `precision_recall`. apart: see `apart`.
    """

    samples: int
    modes: int
    good_modes: int
    kl: float
    good: float
    precision: float
    recall: float
    apart: float


def coverage(
    kind: Tensor, good: Tensor, modes: int, real: Tensor, made: Tensor, apart: float
) -> Coverage:
    """The figures of N samples, each of a kind (N,) 0..modes-1, and good or not (N,) bool.

    real, made: features, as `precision_recall` takes them. apart: what `apart` returns.
    """
    counts = torch.bincount(kind, minlength=modes)
    return Coverage(
        len(kind),
        int((counts > 0).sum()),
        len(kind[good].unique()),
        kl_to_uniform(counts),
        float(good.float().mean()),
        *precision_recall(real, made),
        apart,
    )


def kl_to_uniform(counts: Tensor) -> float:
    """sum_k p_k log(p_k K), p the fractions of the K kinds in `counts` (K,); in nats.

    0 if all are equally common, log K if there is one kind only, inf for no samples at all.
    """
    total = int(counts.sum())
    if total == 0:
        return math.inf
    p = counts.double() / total
    return float(torch.special.xlogy(p, p * len(p)).sum())


def precision_recall(
    real: Tensor, made: Tensor, neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """How much of what was made is like real samples, and the reverse.

    real (N, D), made (M, D): features. Around each real sample lies a ball that reaches its k-th
    nearest neighbour; precision is the fraction of made samples inside any such ball, and recall
    the same with the roles exchanged (Kynkaanniemi et al. 2019, arXiv:1904.06991, eq. 1 and 2).
    ValueError: not more than `neighbours` samples of each.
    """
    if min(len(real), len(made)) <= neighbours:
        raise ValueError(
            f"more than {neighbours} samples of each kind are needed, got {len(real)} real and "
            f"{len(made)} made ones"
        )
    return (
        float(inside(made, real, neighbours).float().mean()),
        float(inside(real, made, neighbours).float().mean()),
    )


def apart(real: Tensor, made: Tensor) -> float:
    """Median distance of a sample to the nearest other one, divided by that of as many real samples.

    real (N, D), made (M, D): pixels or points. A generator that draws the same few pictures over
    and over comes near 0, however good or bad they are; noise is above 1.
    """
    count = min(len(real), len(made))
    near = [
        torch.cdist(x[:count], x[:count]).kthvalue(2, dim=1).values.median() for x in (made, real)
    ]
    return float(near[0] / near[1])


def inside(samples: Tensor, among: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Which of `samples` (M, D) lie in the balls around the points of `among` (N, D): (M,) bool."""
    # The nearest neighbour of all is the point itself.
    radius = torch.cdist(among, among).kthvalue(neighbours + 1, dim=1).values
    return (torch.cdist(samples, among) <= radius).any(dim=1)
