"""The forward process: noise is added in one jump, and a network learns to remove it.

Networks predict one of four quantities. Each is converted to an estimate of x0 here, once, so that
samplers and guidance need not know which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from pellucid.plugins import choose
from pellucid.schedule import Level, Schedule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PREDICTIONS = ("eps", "x0", "v", "flow")
WEIGHTINGS = ("uniform", "min_snr")
TIMES = ("uniform", "logit_normal")


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What the network gets in addition to x and t.

    tokens: (B, L, D), one vector per token. pooled: (B, P), one for the whole text, or None.
    sizes: (B, 6), SDXL's original height and width, crop top and left, target height and width; of
        its refiner (B, 5), with the aesthetic score in place of the target.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    sizes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """`change` done to each tensor that is there."""
        pooled = None if self.pooled is None else change(self.pooled)
        sizes = None if self.sizes is None else change(self.sizes)
        return Conditioning(change(self.tokens), pooled, sizes)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Conditioning:
        """The same on another device, as another number type, or both."""
        return self.map(lambda tensor: tensor.to(device=device, dtype=dtype))

    def repeat(self, count: int) -> Conditioning:
        """The batch `count` times over: (count * B, ...), in the order a, b, a, b."""
        return self.map(lambda tensor: tensor.repeat(count, *[1] * (tensor.ndim - 1)))

    def __getitem__(self, index: slice | Tensor) -> Conditioning:
        """Some of the batch."""
        return self.map(lambda tensor: tensor[index])

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """One batch of several. ValueError if they are not of the same kind and token count."""
        import torch

        _same_kind(parts)
        return _merge(parts, torch.cat)

    @staticmethod
    def mix(parts: Sequence[tuple[Conditioning, float]]) -> Conditioning:
        """The weighted mean of several, weights divided by their sum ("half frog, half rabbit").

        ValueError: nothing to mix, different kinds, weights that add up to zero.
        """
        import torch

        conds = [cond for cond, _ in parts]
        _same_kind(conds)
        weights = [weight for _, weight in parts]
        shares = normalized(weights)
        return _merge(
            conds,
            lambda tensors: torch.stack([t * w for t, w in zip(tensors, shares, strict=True)]).sum(
                0
            ),
        )


def _same_kind(parts: Sequence[Conditioning]) -> None:
    if not parts:
        raise ValueError("there must be at least one conditioning, got none")
    kinds = {
        (p.tokens.shape[1:], p.pooled is None, p.sizes is None)  # a batch may differ, the rest not
        for p in parts
    }
    if len(kinds) > 1:
        shapes = ", ".join(str(tuple(p.tokens.shape)) for p in parts)
        raise ValueError(
            f"conditionings of different kinds cannot be joined: tokens are {shapes}; token count and "
            "width, and the extra parts, must be the same"
        )


def _merge(parts: Sequence[Conditioning], join: Callable[[list[Tensor]], Tensor]) -> Conditioning:
    pooled = [p.pooled for p in parts if p.pooled is not None]
    sizes = [p.sizes for p in parts if p.sizes is not None]
    return Conditioning(
        join([p.tokens for p in parts]),
        join(pooled) if pooled else None,
        join(sizes) if sizes else None,
    )


def normalized(weights: Sequence[float]) -> list[float]:
    """The weights divided by their sum. ValueError if that is not a positive number."""
    total = sum(weights)
    if not 0 < total < float("inf"):
        raise ValueError(f"the sum of the weights {list(weights)} must be positive, got {total}")
    return [weight / total for weight in weights]


Denoiser: TypeAlias = "Callable[[Tensor, Level], Tensor]"
"""(x (B, ...), level) -> an estimate of x0, of x's shape."""

Predict: TypeAlias = "Callable[[Tensor, Level, Conditioning], Tensor]"
"""(x (B, ...), level, conditioning of B) -> an estimate of x0, of x's shape."""

Network: TypeAlias = "Callable[[Tensor, Tensor, Conditioning], Tensor]"
"""(x (B, ...), t (B,), conditioning of B) -> what it was trained to predict."""


def add_noise(x0: Tensor, eps: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
    """x = alpha * x0 + sigma * eps: any noise level in one jump (Ho et al. 2020, eq. 4).

    alpha and sigma: numbers, or tensors that broadcast with x0, such as (B, 1, 1, 1).
    """
    return alpha * x0 + sigma * eps


def small_step(x: Tensor, eps: Tensor, now: Level, after: Level) -> Tensor:
    """From x at `now` to x at the noisier level `after` (Ho et al. 2020, eq. 2).

    x is made smaller by the ratio r of the alphas, and as much fresh noise is added as is missing:
    sigma'^2 - r^2 sigma^2, which on a variance preserving schedule is beta = 1 - r^2. `add_noise`
    does any number of such steps in one jump: the same law, not the same numbers. now.alpha > 0.
    """
    ratio = after.alpha / now.alpha
    missing = after.sigma**2 - ratio**2 * now.sigma**2
    return ratio * x + max(missing, 0.0) ** 0.5 * eps


def target(
    kind: str, x0: Tensor, eps: Tensor, alpha: Tensor | float, sigma: Tensor | float
) -> Tensor:
    """The ideal output of a network with this kind of prediction.

    eps: the noise (Ho et al. 2020). x0: the picture. v = alpha * eps - sigma * x0 (Salimans & Ho
    2022). flow = eps - x0, the velocity dx/du of rectified flow (Liu et al. 2022).
    """
    choose(kind, PREDICTIONS, "prediction")
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    return alpha * eps - sigma * x0 if kind == "v" else eps - x0


def to_x0(
    kind: str, output: Tensor, x: Tensor, alpha: Tensor | float, sigma: Tensor | float
) -> Tensor:
    """The estimate of x0 that a network's output means; the inverse of `target` given x.

    ValueError for "eps" where alpha is 0: there x is the noise, which contains nothing of x0.
    """
    choose(kind, PREDICTIONS, "prediction")
    if kind == "x0":
        return output
    if kind == "eps":
        if alpha == 0 if isinstance(alpha, int | float) else bool((alpha == 0).any()):
            raise ValueError(
                "a network that predicts eps cannot start at alpha = 0; use a schedule without "
                "zero terminal SNR, or a network that predicts v, x0 or flow"
            )
        return (x - sigma * output) / alpha
    if kind == "v":  # the denominator is 1 on variance preserving schedules
        return (alpha * x - sigma * output) / (alpha**2 + sigma**2)
    return (x - sigma * output) / (alpha + sigma)


def eps_from_x0(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """The noise that is in x if x0 is the picture; level.sigma > 0."""
    return (x - level.alpha * x0) / level.sigma


def predictor(network: Network, prediction: str) -> Predict:
    """The network as a function (x, level, conditioning) -> estimate of x0."""
    import torch

    choose(prediction, PREDICTIONS, "prediction")

    def predict(x: Tensor, level: Level, cond: Conditioning) -> Tensor:
        # Half precision cannot hold a fractional t.
        dtype = torch.promote_types(x.dtype, torch.float32)
        t = torch.full((len(x),), level.t, dtype=dtype, device=x.device)
        return to_x0(prediction, network(x, t, cond), x, level.alpha, level.sigma)

    return predict


def sample_t(
    kind: str,
    batch: int,
    T: int,
    generator: torch.Generator | None = None,
    *,
    mean: float = 0.0,
    uniform: float = 0.0,
    discrete: bool = False,
) -> Tensor:
    """Training times (B,) float32 between 0 and T. ValueError for an unknown kind or share.

    uniform: every t alike. logit_normal: t / T = sigmoid(n), n ~ N(mean, 1), so that the middle,
    where most is to be learnt, comes more often (Esser et al. 2024, eq. 19). Its density is 0 at
    both ends, but a run begins at T: there a network that is hardly trained chooses the picture.
    So a share `uniform` of logit_normal's times, 0 to 1, is uniform. discrete: whole t, 0 .. T-1.
    """
    import torch

    choose(kind, TIMES, "distribution of t")
    if not 0 <= uniform <= 1:
        raise ValueError(f"the share of uniform times must be between 0 and 1, got {uniform:g}")
    if kind == "uniform":
        u = torch.rand(batch, generator=generator)
    else:
        u = (torch.randn(batch, generator=generator) + mean).sigmoid()
        if uniform:
            which, uniform_u = torch.rand(2, batch, generator=generator)
            u = torch.where(which < uniform, uniform_u, u)
    t = u * T
    return t.floor().clamp(max=T - 1) if discrete else t


def loss_weight(
    kind: str, prediction: str, alpha: Tensor, sigma: Tensor, gamma: float = 5.0
) -> Tensor:
    """The weight of each sample's squared error, of alpha's shape.

    uniform: 1. min_snr: as if the squared error of x0 had the weight min(SNR, gamma) (Hang et al.
    2023); an error e of the output is an error of x0 of e times what `to_x0` multiplies the output
    by.
    """
    choose(kind, WEIGHTINGS, "loss weighting")
    choose(prediction, PREDICTIONS, "prediction")
    if kind == "uniform":
        return alpha.new_ones(alpha.shape)
    if prediction == "eps":  # min(SNR, gamma) / SNR, finite at SNR = 0
        return (gamma * sigma**2 / alpha**2).clamp(max=1)
    weight = (alpha**2 / sigma**2).clamp(max=gamma)
    if prediction == "v":
        return weight * (sigma / (alpha**2 + sigma**2)) ** 2
    return weight if prediction == "x0" else weight * (sigma / (alpha + sigma)) ** 2


def training_loss(
    network: Network,
    x0: Tensor,
    cond: Conditioning,
    schedule: Schedule,
    prediction: str,
    t: Tensor,
    eps: Tensor,
    weighting: str = "uniform",
) -> Tensor:
    """The weighted squared error of each sample, (B,): add noise, let the network predict, compare.

    x0, eps: (B, ...). t: (B,), between 0 and schedule.T; values beyond the schedule's last t become
    that, for the network too.
    """
    t = t.clamp(max=schedule.last_t)
    alpha, sigma = schedule.alpha_sigma(t)
    wide = (-1, *[1] * (x0.ndim - 1))
    a, s = alpha.to(x0).view(wide), sigma.to(x0).view(wide)  # (B, 1, 1, 1)
    output = network(add_noise(x0, eps, a, s), t, cond)
    error = (output - target(prediction, x0, eps, a, s)).square().flatten(1).mean(1)
    return error * loss_weight(weighting, prediction, alpha.to(x0), sigma.to(x0))
