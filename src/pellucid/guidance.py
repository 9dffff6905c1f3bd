"""Steering: functions from a Denoiser to a Denoiser that make the picture obey the prompt."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.diffusion import Conditioning, Denoiser, Predict, normalized, target, to_x0
from pellucid.noise import slerp
from pellucid.plugins import choose
from pellucid.schedule import Level

WALKS = ("slerp", "lerp")


class Parts(NamedTuple):
    """Estimates of x0: the guided one, and the two that it was made of (all one if unguided)."""

    guided: Tensor
    cond: Tensor
    uncond: Tensor


def progress(level: Level) -> float:
    """How far from noise to picture a level is: 0 is pure noise, 1 is clean."""
    return level.alpha / (level.alpha + level.sigma)


@dataclass(frozen=True, eq=False)
class ClassifierFree:
    """Classifier-free guidance, Ho & Salimans 2022: go on from uncond through cond, `scale` times.

        guided = uncond + scale (cond - uncond)

    cond: what is wanted, of x's batch or of 1; or several, [(cond_i, weight_i), ...], which stand for
        uncond + sum of weight_i (cond_i - uncond) (Liu et al. 2022, "Composable Diffusion", eq. 11).
        With weights that add up to 1 this is their weighted mean, "half frog, half rabbit".
    uncond: the empty or the negative prompt. None is allowed where scale is 1 and weights add up to
        1.
    rescale: 0 to 1, how far the spread of the guided output is brought back to that of cond, which
        keeps high scales from burning colours (Lin et al. 2023, section 3.4; measured on v).
    interval: (from, to) in `progress`: outside of it cond alone is used (Kynkaanniemi et al. 2024).
    The network is called once for each look, with everything in one batch; uncond is in that batch
    only where it counts.
    Raises ValueError: scale or a weight not finite, rescale or interval not in 0 .. 1, uncond
    missing.
    """

    predict: Predict
    cond: Conditioning | Sequence[tuple[Conditioning, float]]
    uncond: Conditioning | None
    scale: float
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"the guidance scale is {self.scale}; a finite number is wanted")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale is {self.rescale}; a number from 0 to 1 is wanted")
        start, end = self.interval
        if not 0 <= start <= end <= 1:
            raise ValueError(f"the interval is {self.interval}; 0 <= from <= to <= 1 is wanted")
        weights = [weight for _, weight in self.wanted]
        if not weights or not all(map(math.isfinite, weights)):
            raise ValueError(f"the weights of cond are {weights}; one or more, finite, are wanted")
        if self.uncond is None and self.scale != 1:
            raise ValueError(f"a guidance scale of {self.scale} needs uncond; only 1 does without")
        if self.uncond is None and self.rest != 0:
            raise ValueError(f"weights of {weights}, which do not add up to 1, need uncond")

    @property
    def wanted(self) -> list[tuple[Conditioning, float]]:
        """What is wanted, and how much."""
        return [(self.cond, 1.0)] if isinstance(self.cond, Conditioning) else list(self.cond)

    @property
    def rest(self) -> float:
        """How much of uncond is in the sum of what is wanted: 1 less the weights."""
        total = math.fsum(weight for _, weight in self.wanted)
        return 0.0 if math.isclose(total, 1) else 1 - total

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """The guided estimate of x0."""
        return self.parts(x, level).guided

    def parts(self, x: Tensor, level: Level) -> Parts:
        """The guided estimate and what it was made of."""
        conds = [cond for cond, _ in self.wanted]
        start, end = self.interval
        guide = self.scale != 1 and start <= progress(level) <= end
        if self.uncond is not None and (guide or self.rest != 0):
            conds.append(self.uncond)
        batch = Conditioning.cat([_fit(cond, len(x)) for cond in conds])
        repeated = x.repeat(len(conds), *[1] * (x.ndim - 1))
        estimates = self.predict(repeated, level, batch).chunk(len(conds))
        pairs = zip(estimates, self.wanted, strict=False)  # without uncond, which comes last
        cond = torch.stack([estimate * weight for estimate, (_, weight) in pairs]).sum(0)
        if self.rest != 0:
            cond = cond + self.rest * estimates[-1]
        if not guide:
            return Parts(cond, cond, cond)
        uncond = estimates[-1]
        guided = uncond + self.scale * (cond - uncond)
        if self.rescale > 0:
            guided = rescaled(guided, cond, x, level, self.rescale)
        return Parts(guided, cond, uncond)


@dataclass(frozen=True, eq=False)
class ByStep:
    """Guidance by prompts that change on the way: at each level, that of the step it belongs to.

    steps: the `progress` at which each begins, rising, and its guidance. A sampler may look as often
    as it likes: between two levels it sees the prompt of the step it is in, and where it looks ahead
    to the end of the step, as Heun's does, that of the next.
    """

    steps: Sequence[tuple[float, ClassifierFree]]

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        return self.parts(x, level).guided

    def parts(self, x: Tensor, level: Level) -> Parts:
        """The guided estimate and what it was made of."""
        at = bisect.bisect_right(self.steps, progress(level), key=lambda step: step[0]) - 1
        return self.steps[max(at, 0)][1].parts(x, level)


def _fit(cond: Conditioning, batch: int) -> Conditioning:
    if len(cond) not in (1, batch):
        raise ValueError(
            f"the conditioning is for {len(cond)} pictures and x has {batch}; "
            f"1 or {batch} is wanted"
        )
    return cond if len(cond) == batch else cond.repeat(batch)


def rescaled(guided: Tensor, cond: Tensor, x: Tensor, level: Level, share: float) -> Tensor:
    """`guided`, the spread of its v moved by `share` to that of cond's v, each picture alone."""
    alpha, sigma = level.alpha, level.sigma

    def v_of(x0: Tensor) -> Tensor:
        return target("v", x0, (x - alpha * x0) / sigma, alpha, sigma)

    over = tuple(range(1, x.ndim))
    v, wanted = v_of(guided), v_of(cond)
    factor = wanted.std(over, keepdim=True) / v.std(over, keepdim=True)
    return to_x0("v", v * (1 + share * (factor - 1)), x, alpha, sigma)


def mix_noise(parts: Sequence[tuple[Denoiser, float]]) -> Denoiser:
    """The weighted mean of several denoisers' estimates, one look each.

    Weights are divided by their sum. At a given x the noise is linear in x0, so that mixing the
    estimates of one is mixing those of the other.
    """
    shares = normalized([weight for _, weight in parts])

    def denoise(x: Tensor, level: Level) -> Tensor:
        looks = [part(x, level) * w for (part, _), w in zip(parts, shares, strict=True)]
        return torch.stack(looks).sum(0)

    return denoise


def walk(a: Conditioning, b: Conditioning, weight: float, kind: str = "slerp") -> Conditioning:
    """A conditioning between a (weight 0) and b (weight 1).

    kind: "lerp" goes straight, "slerp" moves each vector on an arc.
    Between two texts' vectors the straight middle is shorter than either; the arc keeps the length.
    ValueError: weight not in 0 .. 1, unknown kind, conditionings of different kinds.
    """
    choose(kind, WALKS, "walk")
    if not 0 <= weight <= 1:
        raise ValueError(f"the weight is {weight}; a number from 0 to 1 is wanted")
    straight = Conditioning.mix([(a, 1 - weight), (b, weight)])
    if kind == "lerp":
        return straight
    tokens = slerp(a.tokens.flatten(0, 1), b.tokens.flatten(0, 1), weight).view_as(a.tokens)
    pooled = straight.pooled
    if a.pooled is not None and b.pooled is not None:
        pooled = slerp(a.pooled, b.pooled, weight)
    return Conditioning(tokens, pooled, straight.sizes)


def clip_guidance(
    denoise: Denoiser,
    decode: Callable[[Tensor], Tensor],
    embed: Callable[[Tensor], Tensor],
    text: Tensor,
    scale: float,
) -> Denoiser:
    """Move every estimate of x0 to where CLIP sees more of the text in it.

    decode: x0 -> pixels. embed: pixels -> (B, P). text: (B, P) or (1, P). All must be
    differentiable and not run under torch.inference_mode. scale: 0 is none; several hundred is
    usual, as the gradient of a cosine is small. At pure noise, where x says nothing about x0,
    there is no guidance.

    Dhariwal & Nichol 2021, algorithm 2, with log p = scale * cosine(image, text): the score of x
    gains its gradient with respect to x, and so x0 gains sigma^2 / alpha times that.
    """
    if not math.isfinite(scale):
        raise ValueError(f"the CLIP guidance scale is {scale}; a finite number is wanted")

    def guided(x: Tensor, level: Level) -> Tensor:
        if scale == 0 or level.alpha == 0:
            return denoise(x, level)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0 = denoise(x, level)
            likeness = F.cosine_similarity(embed(decode(x0)), text).sum()
            (slope,) = torch.autograd.grad(likeness, x)
        return x0.detach() + scale * level.sigma**2 / level.alpha * slope

    return guided
