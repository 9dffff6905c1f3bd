"""Weights in the order in which oneDNN's kernels read them, and fewer, larger operations, in bfloat16.

PyTorch's own layers bring a weight into that order at every call. For a small picture this takes
longer than the layer itself, and for Stable Diffusion 1.5 a fifth of a step. Here a layer does it when
it is first used; q, k and v are one product; sums and gates are part of the product before them; and
keys and values of a text are computed once.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.diffusion import Conditioning
from pellucid.model import Model
from pellucid.nn import ResidualBlock, SpatialTransformer, TransformerBlock, attend
from pellucid.runtime.backends import LARGE, Prepared, Rehearse, Unsuitable, eager
from pellucid.runtime.devices import (
    begin_turn,
    give_back_memory,
    give_up,
    given_up,
    takes_turns,
)
from pellucid.runtime.precision import dtype_of, native_bfloat16
from pellucid.runtime.threads import parameters_of

HELP = "weights in the order of the processor's kernels; for bfloat16 on a CPU"
FEW = 64
"""Places of a picture up to which PyTorch's group norm takes longer in bfloat16 than in float32."""

ROWS, DEEP = 32, 512
"""Rows up to which oneDNN sums more than so many products of a linear layer in an order of its own."""

mkldnn: Any = torch.ops.mkldnn


def unsuitable(device: torch.device) -> str | None:
    """Why this cannot be used on a device; None if it can."""
    if device.type != "cpu":
        return f"packed runs on a CPU, not on {device.type}"
    if not native_bfloat16():
        return "packed needs a CPU with instructions for bfloat16"
    try:
        linear = Linear(torch.zeros(16, 16, dtype=torch.bfloat16), None)
        linear.plus(*torch.zeros(2, 1, 16, dtype=torch.bfloat16).split(1))
    except (AttributeError, RuntimeError) as error:  # these operators are not public
        reason = str(error).partition("\n")[0]
        return f"packed needs operators of oneDNN that this PyTorch does not have ({reason})"
    return None


_made: weakref.WeakKeyDictionary[nn.Module, nn.Module] = weakref.WeakKeyDictionary()
"""The copies of networks, so that the next request with the same model has them at once."""
_in_order: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Those that were used, so that all of their weights are in the order of the kernels."""
_laid_out: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Other parts of models, whose convolutions are in channels_last."""


def prepare(model: Model, rehearse: Rehearse) -> Prepared:
    """The model with the network as this computes it, the rest as `eager` has it; `model` stays as it
    is. A network in another number type stays as it is too. Raises Unsuitable."""
    if dtype_of(model.backbone) != torch.bfloat16:
        return eager.prepare(model, rehearse)
    network = model.backbone
    if network not in _made:
        if takes_turns(network):
            raise Unsuitable("packed keeps the network in memory, and memory is short")
        if parameters_of(model) >= LARGE:
            _made[network] = packed(_sharing(network))  # no layer of the network that is given up
            give_up(network)
        else:
            _made[network] = packed(network)
    rest = [part for part in (model.vae, model.tiny_vae, model.second_stage) if part is not None]
    eager.channels_last(*(part for part in rest if part not in _laid_out))  # looking takes 1 ms
    _laid_out.update(rest)
    return replace(model, backbone=Packed(model.backbone, _made[model.backbone])), ()


class Packed(nn.Module):
    """A network, and its copy that computes it faster.

    Where attention maps or gradients are asked for, or after the change to float32, the network
    computes itself.
    """

    def __init__(self, network: nn.Module, fast: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.config: Any = getattr(network, "config", None)
        self.fast = (fast,)  # not a part of this: it shares the parameters
        self.tokens: Tensor | None = None

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning, record: Any = None) -> Tensor:
        """As the network's."""
        slopes = torch.is_grad_enabled() and (x.requires_grad or cond.tokens.requires_grad)
        if record is not None or slopes or dtype_of(self.network) != torch.bfloat16:
            begin_turn(self.network)
            eager.channels_last(self.network)
            return self.network(x, t, cond, record)
        if self.tokens is None or not torch.equal(self.tokens, cond.tokens):
            self.tokens = cond.tokens
        cond = replace(cond, tokens=self.tokens)  # the same tensor, by which blocks know it
        x = x.contiguous(memory_format=torch.channels_last)
        fast: Any = self.fast[0]
        out: Tensor = fast(x, t, cond)
        if given_up(self.network) and fast not in _in_order:
            _in_order.add(fast)
            give_back_memory()  # what was freed lies between what is kept
        return out


def _sharing(layer: nn.Module) -> nn.Module:
    """A copy of all layers, which shares the parameters."""
    same = copy.copy(layer)
    tensors = {"_parameters": dict(layer._parameters), "_buffers": dict(layer._buffers)}
    parts = {n: None if part is None else _sharing(part) for n, part in layer._modules.items()}
    same.__dict__ |= {**tensors, "_modules": parts}
    return same


def packed(network: nn.Module) -> nn.Module:
    """A copy of the network, which shares the layers that stay as they are."""
    same = copy.copy(network)
    same.__dict__["_modules"] = _packed_parts(network)
    return same


def _packed_parts(layer: nn.Module) -> dict[str, nn.Module | None]:
    return {
        name: None if part is None else _packed_layer(part) for name, part in layer._modules.items()
    }


def _packed_layer(layer: nn.Module) -> nn.Module:
    if type(layer) in BLOCKS and all(map(known, layer.modules())):
        block: nn.Module = BLOCKS[type(layer)](layer)
        return block
    parts = _packed_parts(layer)
    if all(parts[name] is part for name, part in layer._modules.items()):
        return layer
    same = copy.copy(layer)
    same.__dict__["_modules"] = parts
    return same


def known(layer: nn.Module) -> bool:
    """Whether a layer is one of PyTorch's own or has no weights; a live LoRA has a type of its own."""
    if isinstance(layer, nn.Conv2d) and (layer.groups != 1 or layer.padding_mode != "zeros"):
        return False
    weights = next(layer.parameters(recurse=False), None) is not None
    return not weights or type(layer) in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)


# ---------------------------------------------------------------- layers


class Linear(nn.Module):
    """A linear layer. weight (out, in), bias (out,)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.plain: Tensor | None = weight.detach()
        self.bias = None if bias is None else bias.detach()

    @classmethod
    def of(cls, layer: Any) -> Linear:
        """A linear layer, or a convolution of size 1."""
        return cls(layer.weight.flatten(1), layer.bias)

    def weight(self, x: Tensor) -> Tensor:
        """In the order of the kernel, which depends on the number of rows."""
        if self.plain is not None:
            rows = x.shape[:-1].numel()
            self.packed = mkldnn._reorder_linear_weight(self.plain.contiguous(), rows)
            self.plain = None
        return self.packed

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:
        return self._piecewise(
            lambda x: mkldnn._linear_pointwise(  # the last is for the approximations of gelu
                x, self.weight(x), self.bias, activation, [], "none"
            ),
            x,
        )

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The output plus `other`."""
        return self._piecewise(
            lambda x, y: mkldnn._linear_pointwise.binary(x, y, self.weight(x), self.bias, "add"),
            x,
            other,
        )

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The output times `other`."""
        return self._piecewise(
            lambda x, y: mkldnn._linear_pointwise.binary(x, y, self.weight(x), self.bias, "mul"),
            x,
            other,
        )

    @staticmethod
    def _piecewise(product: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """The product, for few places of each picture `ROWS` rows at a time. With more rows oneDNN sums
        in another order, and a picture would depend on how many others are in its batch."""
        x = inputs[0]
        if x.shape[-1] <= DEEP or x.dim() < 3 or x.shape[-2] > ROWS:
            return product(*inputs)
        pieces = zip(*(each.flatten(0, -2).split(ROWS) for each in inputs), strict=True)
        return torch.cat([product(*piece) for piece in pieces]).unflatten(0, x.shape[:-1])


class Conv2d(nn.Module):
    """A convolution; its input is in channels_last."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.plain: Tensor | None = layer.weight.detach()
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.where = (list(layer.padding), list(layer.stride), list(layer.dilation), 1)

    def weight(self, x: Tensor) -> Tensor:
        """In the order of the kernel, which depends on the size of the picture."""
        if self.plain is not None:
            size = list(x.shape)
            plain = self.plain.contiguous(memory_format=torch.channels_last)  # 3 to 5 times as fast
            self.packed = mkldnn._reorder_convolution_weight(plain, *self.where, size)
            self.plain = None
        return self.packed

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight(x)
        return mkldnn._convolution_pointwise(x, weight, self.bias, *self.where, "none", [], "")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The output plus `other`."""
        weight = (self.weight(x), self.bias, *self.where)
        return mkldnn._convolution_pointwise.binary(x, other, *weight, "add", 1.0, None, [], None)


class GroupNorm(nn.Module):
    """A group norm; of few places in float32."""

    def __init__(self, layer: nn.GroupNorm) -> None:
        super().__init__()
        self.layer = layer
        self.weight, self.bias = layer.weight.detach().float(), layer.bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] * x.shape[3] > FEW:
            return self.layer(x)
        groups, eps = self.layer.num_groups, self.layer.eps
        return F.group_norm(x.float(), groups, self.weight, self.bias, eps).to(x.dtype)


class Residual(nn.Module):
    """`ResidualBlock`."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = GroupNorm(block.norm1), GroupNorm(block.norm2)
        self.conv1, self.conv2 = Conv2d(block.conv1), Conv2d(block.conv2)
        shortcut = block.conv_shortcut
        self.shortcut = None if shortcut is None else Conv2d(shortcut)
        timed = [getattr(block, name, None) for name in ("time_emb_proj", "time_scale_proj")]
        layers: list[Any] = [layer for layer in timed if layer is not None]
        self.parts, self.time = len(layers), None
        if layers:
            weights, biases = ([getattr(x, n) for x in layers] for n in ("weight", "bias"))
            self.time = Linear(torch.cat(weights), torch.cat(biases))

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale = None
        if time is not None and self.time is not None:
            shift, *rest = self.time(time)[:, :, None, None].chunk(self.parts, dim=1)
            h, scale = h + shift, rest[0] if rest else None
        h = self.norm2(h)
        if scale is not None:
            h = torch.addcmul(h, h, scale)
        return self.conv2.plus(F.silu(h), x if self.shortcut is None else self.shortcut(x))


class Transformer(nn.Module):
    """`TransformerBlock`, without a record."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        own, text, (gates, _, down) = block.attn1, block.attn2, block.ff.net
        self.norm1, self.norm2, self.norm3 = block.norm1, block.norm2, block.norm3
        self.heads = own.heads, text.heads
        self.to_qkv = _joined(own.to_q, own.to_k, own.to_v)
        self.to_q, self.to_kv = Linear.of(text.to_q), _joined(text.to_k, text.to_v)
        self.to_out_1, self.to_out_2 = Linear.of(own.to_out[0]), Linear.of(text.to_out[0])
        weights, biases = gates.proj.weight.chunk(2), gates.proj.bias.chunk(2)
        self.up, self.gate = (Linear(*pair) for pair in zip(weights, biases, strict=True))
        self.down = Linear.of(down)
        self.read: tuple[Tensor, list[Tensor]] | None = None

    def forward(self, x: Tensor, context: Tensor, record: Any = None) -> Tensor:
        own, text = self.heads
        q, k, v = _heads(self.to_qkv(self.norm1(x)), 3, own)
        x = self.to_out_1.plus(_joined_heads(attend(q, k, v)), x)
        if self.read is None or self.read[0] is not context:
            self.read = context, _heads(self.to_kv(context), 2, text)
        (q,), (k, v) = _heads(self.to_q(self.norm2(x)), 1, text), self.read[1]
        x = self.to_out_2.plus(_joined_heads(attend(q, k, v)), x)
        h = self.norm3(x)
        return self.down.plus(self.up.times(h, self.gate(h, "gelu")), x)


class Spatial(nn.Module):
    """`SpatialTransformer`, without a record."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.norm = GroupNorm(layer.norm)
        self.proj_in, self.proj_out = Linear.of(layer.proj_in), Linear.of(layer.proj_out)
        self.blocks = nn.ModuleList(Transformer(block) for block in layer.transformer_blocks)

    def forward(self, x: Tensor, context: Tensor, record: Any = None) -> Tensor:
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        for block in self.blocks:
            h = block(h, context)
        out = self.proj_out.plus(h, x.flatten(2).transpose(1, 2))
        out = out.transpose(1, 2).unflatten(2, x.shape[2:])
        if len(out) == 1:  # by the stride of one picture PyTorch does not know channels_last
            out = out.as_strided(out.shape, (out.numel(), *out.stride()[1:]))
        return out


def _joined(*layers: Any) -> Linear:
    """Linear layers with the same input as one."""
    biases = [layer.bias for layer in layers if layer.bias is not None]
    return Linear(
        torch.cat([layer.weight for layer in layers]), torch.cat(biases) if biases else None
    )


def _heads(x: Tensor, parts: int, heads: int) -> list[Tensor]:
    """(B, N, parts * width) -> as many of (B, heads, N, width / heads)."""
    return list(x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind())


def _joined_heads(x: Tensor) -> Tensor:
    """(B, heads, N, d) -> (B, N, heads * d)."""
    return x.transpose(1, 2).flatten(2)


BLOCKS: dict[type[nn.Module], Any] = {
    nn.Linear: Linear.of,
    nn.Conv2d: Conv2d,
    ResidualBlock: Residual,
    TransformerBlock: Transformer,
    SpatialTransformer: Spatial,
}
"""What is replaced, and by what."""
