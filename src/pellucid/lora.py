"""LoRA: a change of a model's weights that is stored with few numbers.

Hu et al. 2021 (arXiv:2106.09685): a weight W has millions of numbers, but what fine-tuning changes in
it has a low rank, so dW = B A, with a thin B and a flat A, is a small file. Other methods store dW
differently, but all of them are W' = W + weight * dW, which this module computes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from pellucid.model import Model

Network = TypeVar("Network", bound=nn.Module)
Kind = Literal["LoRA", "LoHa", "LoKr", "full"]
PARTS = ("backbone", "text", "text_2")
"""The parts of a model that a LoRA may change: fields of `Model`."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix, whole or as a product of thin ones; a convolution counts as (out, in * kh * kw).

    a alone: the matrix itself. a (out, r) and b (r, in): a b. With core (r, r, kh, kw): Tucker's
    decomposition, in which a and b do not see the kernel.
    """

    a: Tensor
    b: Tensor | None = None
    core: Tensor | None = None

    @property
    def sides(self) -> tuple[int, int]:
        """(out, in * kh * kw). Raises ValueError if the pieces do not fit each other."""
        out, inner = len(self.a), math.prod(self.a.shape[1:])
        if self.b is None:
            return out, inner
        ranks, across = (inner, len(self.b)), math.prod(self.b.shape[1:])
        if self.core is not None:
            ranks = (inner, *self.core.shape[:2], len(self.b))
            across *= math.prod(self.core.shape[2:])
        if len(ranks) not in (2, 4) or ranks[0::2] != ranks[1::2]:
            raise ValueError(f"its pieces have the ranks {', '.join(map(str, ranks))}")
        return out, across

    def whole(self, device: torch.device) -> Tensor:
        """The matrix of these sides, float32."""
        a, b, core = (
            None if t is None else t.to(device, torch.float32) for t in (self.a, self.b, self.core)
        )
        assert a is not None
        a = a.reshape(len(a), -1)
        if b is None:
            return a
        b = b.reshape(len(b), -1)
        if core is None:
            return a @ b
        return torch.einsum("or,rs...,si->oi...", a, core, b).flatten(1)

    @property
    def rank(self) -> int | None:
        """None: it is not a product."""
        return None if self.b is None else len(self.b)


@dataclass(frozen=True, eq=False)
class Change:
    """What is added to one parameter.

    LoRA, full: dW = scale * M. LoHa (FedPara, Hyeon-Woo et al. 2021, arXiv:2108.06098):
    dW = scale * M1 * M2, number by number. LoKr (Edalati et al. 2022, arXiv:2212.10650):
    dW = scale * kron(M1, M2).
    magnitude: of DoRA (Liu et al. 2024, arXiv:2402.09353), the length that every column or every row
    of W + dW is scaled to: (out,), (out, 1, ...) or (1, in, ...).
    """

    kind: Kind
    matrices: tuple[Matrix, ...]
    scale: float = 1.0
    magnitude: Tensor | None = None

    @property
    def sides(self) -> tuple[int, int]:
        """(out, in * kh * kw) of the parameter that this is a change of. Raises ValueError if its
        pieces do not fit each other."""
        sides = [matrix.sides for matrix in self.matrices]
        if self.kind == "LoKr":
            out, across = (math.prod(pair) for pair in zip(*sides, strict=True))
            return out, across
        if any(other != sides[0] for other in sides):
            raise ValueError(f"its two matrices are {sides[0]} and {sides[1]}")
        return sides[0]

    def check(self, shape: Sequence[int]) -> None:
        """Raises ValueError if this is no change of a parameter of this shape."""
        out, across = self.sides
        if (out, across) != (shape[0], math.prod(shape[1:])):
            raise ValueError(f"it changes ({out}, {across}) and not {tuple(shape)}")
        self._axis(shape)

    def of(self, weight: Tensor) -> Tensor:
        """dW of `weight`, in its shape, float32.

        With a magnitude m it is m (W + dW) / ||W + dW|| - W (DoRA, equation 5), so that a LoRA with
        weight 0.5 goes half of the way from W to the trained weight.
        """
        parts = [matrix.whole(weight.device) for matrix in self.matrices]
        if self.kind == "LoHa":
            change = parts[0] * parts[1]
        elif self.kind == "LoKr":
            change = torch.kron(parts[0], parts[1])
        else:
            change = parts[0]
        change = (self.scale * change).reshape(weight.shape)
        if self.magnitude is None:
            return change
        moved = weight.float() + change
        axis = self._axis(weight.shape)
        others = [side for side in range(weight.ndim) if side != axis]
        length = torch.linalg.vector_norm(moved, dim=others, keepdim=True)
        lengths = self.magnitude.to(weight.device, torch.float32).reshape(length.shape)
        return lengths / length.clamp_min(torch.finfo(torch.float32).tiny) * moved - weight.float()

    def _axis(self, shape: Sequence[int]) -> int:
        """The side of a weight of this shape along which the magnitude runs."""
        if self.magnitude is None:
            return 0
        own, count = self.magnitude.shape, self.magnitude.numel()
        if count == shape[0] and own[0] == count:
            return 0
        if len(own) > 1 and len(shape) > 1 and own[1] == shape[1] == count:
            return 1
        raise ValueError(f"its magnitude {tuple(own)} fits no side of {tuple(shape)}")

    @property
    def rank(self) -> int | None:
        """None: nothing in it is a product."""
        return max((m.rank for m in self.matrices if m.rank is not None), default=None)


@dataclass(frozen=True, eq=False)
class Lora:
    """What a LoRA file changes in the model that it was read for.

    changes: part, one of `PARTS` -> name of a parameter of that part -> its change. unmatched: the
    keys of the file that match nothing in the model. words: new words of a prompt that the file
    brings -> their vectors, as in `textual_inversion.Embedding`.
    """

    name: str
    changes: Mapping[str, Mapping[str, Change]]
    unmatched: tuple[str, ...] = ()
    words: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


Weighted = tuple[Lora, float, float]
"""A LoRA, its weight in the network, and its weight in the text towers."""


def attach(model: Model, loras: Sequence[Weighted], live: bool = False) -> Model:
    """The model with LoRAs applied. `model` is not changed, and unchanged parts are shared.

    The order of `loras` matters only for rounding. live: the changed weights are not kept
    but computed in every forward pass, which takes longer and needs no memory for them; the results
    are identical. Weights are summed in float32, in any type.
    Raises ValueError if a weight is not finite with its changes.
    """
    changed: dict[str, Any] = {}
    for part in PARTS:
        sums: dict[str, list[tuple[Change, float]]] = {}
        for lora, weight, text_weight in loras:
            counts = weight if part == "backbone" else text_weight
            if counts != 0:
                for name, change in lora.changes.get(part, {}).items():
                    sums.setdefault(name, []).append((change, counts))
        if sums:
            changed[part] = _changed(getattr(model, part), sums, live)
    return replace(model, **changed)


def _changed(
    part: nn.Module, sums: Mapping[str, Sequence[tuple[Change, float]]], live: bool
) -> nn.Module:
    part = sharing(part)
    for name, changes in sums.items():
        place, _, leaf = name.rpartition(".")
        owner = part.get_submodule(place)
        parameter = getattr(owner, leaf)
        summed = Sum(changes)
        with torch.no_grad():
            moved = summed(parameter)
        if not torch.isfinite(moved).all():
            kind = str(moved.dtype).removeprefix("torch.")
            raise ValueError(
                f"the LoRA makes {name} not finite in {kind}: its file is damaged, or its weight is "
                "too high"
            )
        if live:
            register_parametrization(owner, leaf, summed, unsafe=True)  # it has just been tried
        else:
            setattr(owner, leaf, nn.Parameter(moved, requires_grad=parameter.requires_grad))
    return part


class Sum(nn.Module):
    """A parameter with its changes, each with its weight: W + sum of weight * dW."""

    def __init__(self, changes: Sequence[tuple[Change, float]]) -> None:
        super().__init__()
        self.changes = tuple(changes)

    def forward(self, weight: Tensor) -> Tensor:
        total = weight.float()
        for change, counts in self.changes:
            total = total + counts * change.of(weight)
        return total.to(weight.dtype)


def sharing(part: Network) -> Network:
    """A copy of the modules that shares the memory of the weights.

    The parameters are objects of their own: when one of the two is moved to another device or
    number type, the other one stays.
    """
    own: dict[int, Tensor] = {}
    for parameter in part.parameters():
        own[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    for buffer in part.buffers():
        own[id(buffer)] = buffer.detach()
    return copy.deepcopy(part, own)
