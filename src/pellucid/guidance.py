"""Steering: how a prompt guides the estimates of x0.

Everything that guides is a `GuidedDenoiser`, ``(x, level) -> Parts``. Classifier-free guidance makes
one from the network; the others wrap one and are one themselves: prompts that change from step to
step, CLIP guidance, masks (`inpaint.Keep`), a record. A sampler takes `as_denoiser` of it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.diffusion import Conditioning, Denoiser, Predict, target, to_x0
from pellucid.noise import slerp
from pellucid.plugins import choose
from pellucid.schedule import Level

INTERPOLATIONS = ("slerp", "lerp")


class Parts(NamedTuple):
    """Estimates of x0: the guided one, and the two that it was made of (all the same if unguided)."""

    guided: Tensor
    cond: Tensor
    uncond: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Parts:
        """`change` applied to each."""
        return Parts(*map(change, self))


class GuidedDenoiser(Protocol):
    """(x (B, ...), level) -> estimates of x0, each of x's shape."""

    def __call__(self, x: Tensor, level: Level, /) -> Parts: ...


def as_denoiser(guided: GuidedDenoiser) -> Denoiser:
    """The guided estimate alone."""
    return lambda x, level: guided(x, level).guided


def signal_share(level: Level) -> float:
    """alpha / (alpha + sigma), how far from noise to picture a level is: 0 is noise, 1 is clean."""
    return level.alpha / (level.alpha + level.sigma)


@dataclass(frozen=True, eq=False)
class ClassifierFree:
    """Classifier-free guidance, Ho & Salimans 2022: from uncond through cond, `scale` times as far.

        guided = uncond + scale (cond - uncond)

    cond: the prompt, of x's batch or of 1; or several, [(cond_i, weight_i), ...], which stand for
        uncond + sum of weight_i (cond_i - uncond) (Liu et al. 2022, "Composable Diffusion", eq. 11).
        With weights that add up to 1 this is their weighted mean, "half frog, half rabbit". A weight
        may be a tensor (B, 1, 1, 1), one for each picture of x; such weights must add up to 1.
    uncond: the empty or the negative prompt. May be None if scale is 1 and the weights add up to 1.
    rescale: 0 to 1, how far the spread of the guided output is brought back to that of cond, which
        keeps high scales from burning colours (Lin et al. 2023, section 3.4; measured on v).
    interval: (from, to) in `signal_share`: outside of it cond alone is used (Kynkaanniemi et al. 2024).
    The network is called once for each estimate, with everything in one batch; uncond is in that
    batch only where it counts.
    Raises ValueError: scale or a weight not finite, rescale or interval not in 0 .. 1, uncond
    missing.
    """

    predict: Predict
    cond: Conditioning | Sequence[tuple[Conditioning, float | Tensor]]
    uncond: Conditioning | None
    scale: float
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"guidance must be a finite number, got {self.scale}")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must be from 0 to 1, got {self.rescale}")
        start, end = self.interval
        if not 0 <= start <= end <= 1:
            raise ValueError(f"interval must be 0 <= from <= to <= 1, got {self.interval}")
        weights = [weight for _, weight in self.conds]
        if not weights or not all(torch.as_tensor(each).isfinite().all() for each in weights):
            raise ValueError(
                f"the weights of cond must be one or more finite numbers, got {weights}"
            )
        if self.uncond is None and self.scale != 1:
            raise ValueError(f"a guidance of {self.scale} needs uncond; only 1 does not")
        if self.uncond is None and self.rest != 0:
            raise ValueError(f"weights {weights}, which do not add up to 1, need uncond")

    @property
    def conditional(self) -> ClassifierFree:
        """The same without guidance, which takes half of the work."""
        return replace(self, scale=1.0, rescale=0.0)

    @property
    def conds(self) -> list[tuple[Conditioning, float | Tensor]]:
        """The prompts and their weights."""
        return [(self.cond, 1.0)] if isinstance(self.cond, Conditioning) else list(self.cond)

    @property
    def rest(self) -> float:
        """How much of uncond is in the sum of the prompts: 1 minus their weights."""
        weights = [weight for _, weight in self.conds if not isinstance(weight, Tensor)]
        total = math.fsum(weights) if weights else 1
        return 0.0 if math.isclose(total, 1) else 1 - total

    def is_guided(self, level: Level) -> bool:
        """Whether there is guidance at a level."""
        start, end = self.interval
        return self.scale != 1 and start <= signal_share(level) <= end

    def has_prompts_of(self, other: ClassifierFree) -> bool:
        """Whether both have the same prompts with the same weights, and the same negative prompt."""
        ours, theirs = (
            [*each.conds, *([] if each.uncond is None else [(each.uncond, 0.0)])]
            for each in (self, other)
        )
        return len(ours) == len(theirs) and all(
            torch.equal(torch.as_tensor(weight), torch.as_tensor(other_weight))
            and (a is b or torch.equal(a.tokens, b.tokens))
            for (a, weight), (b, other_weight) in zip(ours, theirs, strict=True)
        )

    def __call__(self, x: Tensor, level: Level) -> Parts:
        """The guided estimate, and what it was made of."""
        conds = [cond for cond, _ in self.conds]
        guide = self.is_guided(level)
        if self.uncond is not None and (guide or self.rest != 0):
            conds.append(self.uncond)
        batch = Conditioning.cat([_fit(cond, len(x)) for cond in conds])
        repeated = x.repeat(len(conds), *[1] * (x.ndim - 1))
        estimates = self.predict(repeated, level, batch).chunk(len(conds))
        pairs = zip(estimates, self.conds, strict=False)  # without uncond, which comes last
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

    begins: the level at which each step begins. guides: the guidance of each step.
    """

    begins: Sequence[Level]
    guides: Sequence[GuidedDenoiser]

    def __call__(self, x: Tensor, level: Level) -> Parts:
        return self.guides[step_at(self.begins, level)](x, level)


def step_at(begins: Sequence[Level], level: Level) -> int:
    """The step that a level belongs to: the last one that has begun there.

    A sampler may evaluate the network at any level: between two levels it gets the prompt of the
    step it is in, and at the end of a step, where Heun's method evaluates ahead, that of the next.
    """
    return max(bisect.bisect_right(begins, signal_share(level), key=signal_share) - 1, 0)


@dataclass
class Recorded:
    """A guided denoiser that remembers the parts of its last estimate."""

    guided: GuidedDenoiser
    last: Parts | None = None

    def __call__(self, x: Tensor, level: Level) -> Parts:
        parts = self.guided(x, level)
        self.last = parts.map(Tensor.detach)  # CLIP guidance makes a graph
        return parts


def _fit(cond: Conditioning, batch: int) -> Conditioning:
    if len(cond) not in (1, batch):
        raise ValueError(
            f"the conditioning is for {len(cond)} pictures and x has {batch}; it must be for 1 or "
            f"{batch}"
        )
    return cond if len(cond) == batch else cond.repeat(batch)


def rescaled(guided: Tensor, cond: Tensor, x: Tensor, level: Level, share: float) -> Tensor:
    """`guided`, the spread of its v moved by `share` to that of cond's v, each picture alone."""
    alpha, sigma = level.alpha, level.sigma

    def v_of(x0: Tensor) -> Tensor:
        return target("v", x0, (x - alpha * x0) / sigma, alpha, sigma)

    over = tuple(range(1, x.ndim))
    v, v_cond = v_of(guided), v_of(cond)
    factor = v_cond.std(over, keepdim=True) / v.std(over, keepdim=True)
    return to_x0("v", v * (1 + share * (factor - 1)), x, alpha, sigma)


def interpolate(
    a: Conditioning, b: Conditioning, weight: float, kind: str = "slerp"
) -> Conditioning:
    """A conditioning between a (weight 0) and b (weight 1).

    kind: "lerp" goes straight, "slerp" moves each vector on an arc.
    Between two texts' vectors the straight middle is shorter than either; the arc keeps the length.
    ValueError: weight not in 0 .. 1, unknown kind, conditionings of different kinds.
    """
    choose(kind, INTERPOLATIONS, "interpolation")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be from 0 to 1, got {weight}")
    straight = Conditioning.mix([(a, 1 - weight), (b, weight)])
    if kind == "lerp":
        return straight
    tokens = slerp(a.tokens.flatten(0, 1), b.tokens.flatten(0, 1), weight).view_as(a.tokens)
    pooled = straight.pooled
    if a.pooled is not None and b.pooled is not None:
        pooled = slerp(a.pooled, b.pooled, weight)
    return Conditioning(tokens, pooled, straight.sizes)


def clip_guidance(
    guided: GuidedDenoiser,
    decode: Callable[[Tensor], Tensor],
    embed: Callable[[Tensor], Tensor],
    text: Tensor,
    scale: float,
) -> GuidedDenoiser:
    """Move every guided estimate of x0 to where CLIP sees more of the text in it.

    decode: x0 -> pixels. embed: pixels -> (B, P). text: (B, P) or (1, P). All must be
    differentiable and not run under torch.inference_mode. scale: 0 is none; several hundred is
    usual, as the gradient of a cosine is small. At pure noise, where x says nothing about x0,
    there is no guidance.

    Dhariwal & Nichol 2021, algorithm 2, with log p = scale * cosine(image, text): the score of x
    gains its gradient with respect to x, and so x0 gains sigma^2 / alpha times that.
    """
    if not math.isfinite(scale):
        raise ValueError(f"clip_guidance must be a finite number, got {scale}")

    def with_clip(x: Tensor, level: Level) -> Parts:
        if scale == 0 or level.alpha == 0:
            return guided(x, level)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            parts = guided(x, level)
            likeness = F.cosine_similarity(embed(decode(parts.guided)), text).sum()
            (slope,) = torch.autograd.grad(likeness, x)
        parts = parts.map(Tensor.detach)
        return parts._replace(guided=parts.guided + scale * level.sigma**2 / level.alpha * slope)

    return with_clip
