"""Convolutions over few places, whose backward pass for the weights is one product of matrices.

In bfloat16 on a CPU, oneDNN's own takes three times as long where a picture has 4x4 places: 6.8 and
2.0 ms for 32 pictures and 384 to 192 channels (one thread of a processor with AMX).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PLACES = 16
"""Height times width up to which the product is faster."""


class _Convolution(torch.autograd.Function):
    """3x3, stride 1, padding 1: x (B, C_in, h, w), weight (C_out, C_in, 3, 3), bias (C_out,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        slope = slope.contiguous(memory_format=torch.channels_last)
        of_x = torch.ops.aten.convolution_backward(
            slope, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False]
        )[0]
        rows = slope.permute(0, 2, 3, 1).flatten(0, 2)  # (B*h*w, C_out)
        of_weight = (rows.T @ _surroundings(x)).unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)
        return of_x, of_weight, rows.sum(0)


def _surroundings(x: Tensor) -> Tensor:
    """What a 3x3 convolution reads for each place: (B, C, h, w) -> (B*h*w, 9*C)."""
    height, width = x.shape[2:]
    edged = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    shifted = [edged[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return torch.cat(shifted, dim=-1).flatten(0, 2)


class Conv2d(nn.Conv2d):
    """A convolution that is trained in bfloat16; without autocast it is PyTorch's own."""

    def forward(self, x: Tensor) -> Tensor:
        small = x.shape[2] * x.shape[3] <= PLACES and x.device.type == "cpu"
        if not (small and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
            return super().forward(x)
        assert self.bias is not None
        return _Convolution.apply(*(part.bfloat16() for part in (x, self.weight, self.bias)))


def prepare(network: nn.Module) -> None:
    """Give the network such convolutions, where it has 3x3 ones; they keep their parameters."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if (
                type(layer) is nn.Conv2d
                and (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
                and (layer.groups, layer.padding_mode) == (1, "zeros")
                and layer.bias is not None
            ):
                with torch.device("meta"):
                    new = Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)
                new.weight, new.bias = layer.weight, layer.bias
                setattr(parent, name, new)
