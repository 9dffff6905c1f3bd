"""Weights and activations of the large layers in 8 bits, by oneDNN's own kernels (W8A8).

A weight has one scale for each output channel. An activation has one scale and one zero point, found
each time it is computed, so nothing has to be calibrated. The first and the last layer, everything
that is computed from the time, and what reads the text stay as they are.
"""

from __future__ import annotations

import copy
import math
import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.diffusion import Conditioning
from pellucid.model import Model
from pellucid.nn import Attention, TimestepEmbedding
from pellucid.progress import each
from pellucid.runtime.backends import Prepared, Rehearse, eager
from pellucid.runtime.devices import give_back_memory, give_up, given_up, reading
from pellucid.runtime.precision import native_int8
from pellucid.runtime.threads import SMALL, step_size

HELP = "the large layers in 8 bits; for a CPU with VNNI"
LEAST = 2**16
"""Numbers in a weight that is worth it: finding the scale of the input costs time too."""

PIECE = 2**16
"""Numbers of an activation that are rounded at once."""


def unsuitable(device: torch.device) -> str | None:
    """Why this cannot be used on a device; None if it can."""
    if device.type != "cpu":
        return f"int8 runs on a CPU, not on {device.type}"
    if not hasattr(torch.ops.onednn, "qconv_pointwise") or not torch.backends.mkldnn.is_available():
        return "int8 needs a PyTorch with oneDNN"
    if not native_int8():
        return "int8 needs a CPU with AVX-512 VNNI"
    return None


_made: weakref.WeakKeyDictionary[nn.Module, nn.Module] = weakref.WeakKeyDictionary()
"""The networks in 8 bits, so that the next request with the same model has them at once."""


def prepare(model: Model, rehearse: Rehearse) -> Prepared:
    """The model with the network in 8 bits, the rest as `eager` has it; `model` stays as it is.

    A network whose step is small would be slower, and stays as it is too.
    """
    model, _ = eager.prepare(model, rehearse)
    if step_size(model) <= SMALL:
        return model, ()
    if model.backbone not in _made:
        with reading(model.backbone):
            _made[model.backbone] = EachPicture(quantized(model.backbone))
        if given_up(model.backbone):
            give_back_memory()
    return replace(model, backbone=_made[model.backbone]), ()


class EachPicture(nn.Module):
    """A network that computes one picture after the other: with one scale for the inputs of a whole
    batch, a picture would depend on the others. It takes about a tenth longer.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.config: Any = getattr(network, "config", None)

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning, record: Any = None) -> Tensor:
        """As the network's."""
        if record is not None:
            return self.network(x, t, cond, record)
        rows = zip(x.split(1), t.split(1), range(len(x)), strict=True)
        return torch.cat([self.network(row, time, cond[i : i + 1]) for row, time, i in rows])


def quantized(network: nn.Module) -> nn.Module:
    """A copy of the network, which shares all weights that stay as they are."""
    tensors = [*network.parameters(), *network.buffers()]
    same = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
    rounded = {id(layer) for layer in rounded_layers(same).values()}
    # Each weight then goes when it is rounded; no list here may hold it, or its layer.
    del tensors
    give_up(network)
    parents = [module for module in same.modules() if next(module.children(), None) is not None]
    for parent in each("rounding weights to 8 bits", parents):
        shared = Quantizer()
        for name, layer in list(parent.named_children()):
            if id(layer) in rounded:
                small = Linear if isinstance(layer, nn.Linear) else Conv2d
                setattr(parent, name, small(layer, shared))  # type: ignore[arg-type]
    return same


def rounded_layers(network: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers that are computed in 8 bits, by their names."""
    kept = {id(layer) for layer in _kept(network)}
    return {
        name: layer
        for name, layer in network.named_modules()
        # A layer with a live LoRA has a type of its own.
        if (type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1))
        and layer.weight.numel() >= LEAST
        and id(layer) not in kept
    }


def _kept(network: nn.Module) -> list[nn.Module]:
    """Layers that stay as they are."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    kept: list[nn.Module] = [layers[0], layers[-1]]
    for name, layer in network.named_modules():
        if name.endswith((".time_emb_proj", ".time_scale_proj")) or "map_embedding" in name:
            kept.append(layer)
        elif isinstance(layer, TimestepEmbedding):
            kept += layer.children()
        elif isinstance(layer, Attention) and name.endswith("attn2"):
            kept += [layer.to_k, layer.to_v]
    return [
        *kept,
        *(getattr(network, name) for name in ("conv_in", "conv_out") if hasattr(network, name)),
    ]


class Quantizer:
    """Activations in 8 bits. Layers with the same input, as those for q, k and v, share one."""

    def __init__(self) -> None:
        self.source: weakref.ref[Tensor] | None = None
        self.last: tuple[Tensor, float, int] | None = None

    def __deepcopy__(self, memo: object) -> Quantizer:
        return Quantizer()

    def __call__(self, x: Tensor) -> tuple[Tensor, float, int]:
        """x as whole numbers from 0 to 255, their scale, and which of them is zero."""
        if self.last is not None and self.source is not None and self.source() is x:
            return self.last
        low, high = (float(end) for end in x.aminmax())
        if not math.isfinite(high - low):  # so that the output is not finite either
            self.source, self.last = weakref.ref(x), (x.to(torch.uint8), math.nan, 0)
            return self.last
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / 255, 1e-12)
        zero = math.floor(-low / scale)  # rounded up, the largest number would be 256
        numbers = torch.empty_like(x, dtype=torch.uint8)
        # In pieces that stay in the cache; half precision has too few digits for the sum.
        room = torch.empty(PIECE)
        for piece, target in zip(
            _in_order(x).split(PIECE), _in_order(numbers).split(PIECE), strict=True
        ):
            target.copy_(room[: len(piece)].copy_(piece).mul_(1 / scale).add_(zero + 0.5))
        self.source, self.last = weakref.ref(x), (numbers, scale, zero)
        return self.last


def _in_order(x: Tensor) -> Tensor:
    """A view of a tensor's numbers as they are in memory: of tokens, or of a picture in
    channels_last."""
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).reshape(-1)


def _rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight as whole numbers from -127 to 127, and the scale of each output channel."""
    flat = weight.detach().float().flatten(1)
    scales = (flat.abs().amax(1) / 127).clamp_min(1e-12)
    return (flat / scales[:, None]).round_().to(torch.int8).view(weight.shape), scales


class Linear(nn.Module):
    """A linear layer in 8 bits."""

    def __init__(self, layer: nn.Linear, quantizer: Quantizer) -> None:
        super().__init__()
        numbers, self.scales = _rows(layer.weight)
        self.zeros = torch.zeros(len(numbers), dtype=torch.int64)
        self.packed = torch.ops.onednn.qlinear_prepack(numbers, None)
        self.bias = None if layer.bias is None else layer.bias.detach().float()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        numbers, scale, zero = self.quantizer(x.contiguous())
        return torch.ops.onednn.qlinear_pointwise(
            numbers, scale, zero, self.packed, self.scales, self.zeros, self.bias,
            1.0, 0, x.dtype, "none", [], "",
        )  # fmt: skip


class Conv2d(nn.Module):
    """A convolution in 8 bits."""

    def __init__(self, layer: nn.Conv2d, quantizer: Quantizer) -> None:
        super().__init__()
        numbers, self.scales = _rows(layer.weight)
        self.zeros = torch.zeros(len(numbers), dtype=torch.int64)
        self.where = (list(layer.stride), list(layer.padding), list(layer.dilation), 1)
        self.packed = torch.ops.onednn.qconv_prepack(
            numbers, self.scales, 1.0, 1, *self.where, None
        )
        self.bias = None if layer.bias is None else layer.bias.detach().float()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        numbers, scale, zero = self.quantizer(x.contiguous(memory_format=torch.channels_last))
        return torch.ops.onednn.qconv_pointwise(
            numbers, scale, zero, self.packed, self.scales, self.zeros, self.bias, *self.where,
            1.0, 0, x.dtype, "none", [], "",
        )  # fmt: skip
