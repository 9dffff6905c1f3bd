"""A network of PyTorch written down as a graph of OpenVINO, by running it on symbols.

A `Symbol` has the shape of a tensor and no numbers. The network's own `forward` is called with
symbols, and what it does to them is added to the graph (PyTorch's `__torch_function__`), so there is
no second description of any network, and what it decides by shapes is decided as always. Weights are
not copied: the graph refers to their memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import openvino as ov
import torch
import torch.nn.functional as F
from openvino import opset13 as ops
from torch import Tensor

TYPES = {torch.float32: ov.Type.f32, torch.bfloat16: ov.Type.bf16, torch.float16: ov.Type.f16}


class Unsupported(ValueError):
    """The network does something that this cannot write down."""


class Graph:
    """The graph so far.

    ranges: the least and the largest input of the layers whose weights are in 8 bits, by the
    `data_ptr` of the weight. tokens: whether the inputs of linear layers are rounded too. dtype: of
    the numbers in the graph; in bfloat16 OpenVINO makes no copy of the weights in float32.
    """

    def __init__(
        self,
        ranges: Mapping[int, tuple[float, float]] | None = None,
        tokens: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.ranges = ranges or {}
        self.tokens = tokens
        self.dtype = dtype
        self.inputs: list[Any] = []
        self.kept: list[Any] = []
        """What must live as long as the graph: memory that it refers to."""

    def input(self, shape: Sequence[int]) -> Symbol:
        """A tensor that the graph is given."""
        node = ops.parameter(list(shape), ov.Type.f32)
        self.inputs.append(node)
        return Symbol(self, self.cast(node))

    def cast(self, node: Any) -> Any:
        """A node in the type of the graph."""
        kind = TYPES[self.dtype]
        same = node.output(0).get_element_type() == kind
        return node if same else ops.convert(node, kind.to_string())

    def number(self, value: float) -> Any:
        """A number, in the type of the graph."""
        return ops.constant(value, TYPES[self.dtype])

    def constant(self, tensor: Tensor) -> Any:
        """A tensor of numbers, in the type of the graph whatever type they have in memory."""
        tensor = tensor.detach().contiguous()
        if tensor.dtype not in TYPES:
            tensor = tensor.float()
        self.kept.append(tensor)
        plain = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        numbers = plain.numpy()
        memory = ov.Tensor(numbers, list(tensor.shape), TYPES[tensor.dtype])
        self.kept.append(memory)
        return self.cast(ops.constant(memory, shared_memory=True))

    def weight(self, weight: Tensor) -> tuple[Any, tuple[float, float] | None]:
        """The weight of a linear layer or a convolution, in 8 bits with a scale for each output
        channel where the range of the layer's input is known, which is given too."""
        ends = self.ranges.get(weight.data_ptr())
        if ends is None:
            return self.constant(weight), None
        flat = weight.detach().float().flatten(1)
        scales = (flat.abs().amax(1, keepdim=True) / 127).clamp_min(1e-12)
        numbers = (flat / scales).round_().to(torch.int8).view(weight.shape)
        whole = self.cast(ops.constant(numbers.numpy(), ov.Type.i8))
        wide = scales.view(-1, *[1] * (weight.ndim - 1))
        return ops.multiply(whole, ops.constant(wide.numpy())), ends

    def finish(self, output: Symbol) -> ov.Model:
        wide = self.dtype == torch.float32
        return ov.Model([output.node if wide else ops.convert(output.node, "f32")], self.inputs)


def rounded(x: Any, ends: tuple[float, float]) -> Any:
    """An input in 8 bits."""
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    if low < 0:  # so that zero is one of the whole numbers
        step = (high - low) / 255
        low = -round(-low / step) * step
        high = low + 255 * step
    least, most = np.float32(low), np.float32(max(high, 1e-12))
    return ops.fake_quantize(x, least, most, least, most, 256)


class Symbol:
    """A tensor of the graph."""

    dtype, device, requires_grad = torch.float32, torch.device("cpu"), False

    def __init__(self, graph: Graph, node: Any) -> None:
        self.graph, self.node = graph, node
        self.shape = torch.Size(node.output(0).get_shape())

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if function not in FUNCTIONS:
            raise Unsupported(f"the network calls {getattr(function, '__name__', function)}")
        return FUNCTIONS[function](*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        raise Unsupported(f"the network uses {name} of a tensor")

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def element_size(self) -> int:
        return 4

    def new(self, node: Any) -> Symbol:
        return Symbol(self.graph, node)

    def to(self, *_: Any, **__: Any) -> Symbol:
        return self

    def contiguous(self, **_: Any) -> Symbol:
        return self

    def reshape(self, *shape: int) -> Symbol:
        return self.new(ops.reshape(self.node, np.array(shape, np.int64), False))

    def unflatten(self, dim: int, sizes: Sequence[int]) -> Symbol:
        dim %= self.ndim
        return self.reshape(*self.shape[:dim], *sizes, *self.shape[dim + 1 :])

    def flatten(self, start: int = 0, end: int = -1) -> Symbol:
        start, end = start % self.ndim, end % self.ndim
        middle = math.prod(self.shape[start : end + 1])
        return self.reshape(*self.shape[:start], middle, *self.shape[end + 1 :])

    def permute(self, *dims: int) -> Symbol:
        return self.new(ops.transpose(self.node, np.array(dims, np.int64)))

    def transpose(self, a: int, b: int) -> Symbol:
        order = list(range(self.ndim))
        order[a], order[b] = order[b], order[a]
        return self.permute(*order)

    def chunk(self, count: int, dim: int = 0) -> tuple[Symbol, ...]:
        dim %= self.ndim
        size = -(-self.shape[dim] // count)
        return tuple(
            self._cut(dim, i, min(i + size, self.shape[dim]))
            for i in range(0, self.shape[dim], size)
        )

    def _cut(self, dim: int, begin: int, end: int) -> Symbol:
        each = [np.array([number], np.int64) for number in (begin, end, 1, dim)]
        return self.new(ops.slice(self.node, *each))

    def __getitem__(self, index: Any) -> Symbol:
        found, dim = self, 0
        for one in index if isinstance(index, tuple) else (index,):
            if one is None:
                found = found.reshape(*found.shape[:dim], 1, *found.shape[dim:])
            elif isinstance(one, int):
                one %= found.shape[dim]
                cut = found._cut(dim, one, one + 1)
                found = cut.reshape(*cut.shape[:dim], *cut.shape[dim + 1 :])
                continue
            else:
                begin, end, step = one.indices(found.shape[dim])
                if step != 1:
                    raise Unsupported("the network leaves out places of a tensor")
                if (begin, end) != (0, found.shape[dim]):
                    found = found._cut(dim, begin, end)
            dim += 1
        return found

    def _with(self, other: Any, operation: Callable[[Any, Any], Any], turned: bool) -> Symbol:
        if isinstance(other, Symbol):
            node = other.node
        elif isinstance(other, Tensor):
            node = self.graph.constant(other)
        else:
            node = self.graph.number(other)
        return self.new(operation(node, self.node) if turned else operation(self.node, node))

    def __add__(self, other: Any) -> Symbol:
        return self._with(other, ops.add, False)

    def __sub__(self, other: Any) -> Symbol:
        return self._with(other, ops.subtract, False)

    def __mul__(self, other: Any) -> Symbol:
        return self._with(other, ops.multiply, False)

    def __truediv__(self, other: Any) -> Symbol:
        return self._with(other, ops.divide, False)

    def __rsub__(self, other: Any) -> Symbol:
        return self._with(other, ops.subtract, True)

    __radd__, __rmul__ = __add__, __mul__


# ---------------------------------------------------------------- what networks call


def _linear(x: Symbol, weight: Tensor, bias: Tensor | None = None) -> Symbol:
    node, ends = x.graph.weight(weight)
    source = x.node if ends is None or not x.graph.tokens else rounded(x.node, ends)
    out = x.new(ops.matmul(source, node, False, True))
    return out if bias is None else out + bias


def _conv2d(
    x: Symbol,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
) -> Symbol:
    if groups != 1 or isinstance(padding, str):
        raise Unsupported("the network has a convolution in groups")
    node, ends = x.graph.weight(weight)
    source = x.node if ends is None else rounded(x.node, ends)
    pads = list(padding)
    out = x.new(ops.convolution(source, node, list(stride), pads, pads, list(dilation)))
    return out if bias is None else out + bias[:, None, None]


def _group_norm(
    x: Symbol,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Symbol:
    assert weight is not None and bias is not None
    scale, shift = x.graph.constant(weight), x.graph.constant(bias)
    return x.new(ops.group_normalization(x.node, scale, shift, groups, eps))


def _layer_norm(
    x: Symbol,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Symbol:
    axes = np.arange(-len(shape), 0, dtype=np.int64)
    out = x.new(ops.mvn(x.node, axes, True, eps, "inside_sqrt"))
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def _rms_norm(
    x: Symbol, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Symbol:
    axes = np.arange(-len(shape), 0, dtype=np.int64)
    mean = x.new(ops.reduce_mean((x * x).node, axes, True)) + (eps or 1e-6)
    out = x / x.new(ops.sqrt(mean.node))
    return out if weight is None else out * weight


def _attention(q: Symbol, k: Symbol, v: Symbol) -> Symbol:
    return q.new(ops.scaled_dot_product_attention(q.node, k.node, v.node, causal=False))


def _cat(parts: Sequence[Symbol], dim: int = 0) -> Symbol:
    graph = next(part.graph for part in parts if isinstance(part, Symbol))
    nodes = [p.node if isinstance(p, Symbol) else graph.constant(p) for p in parts]
    return Symbol(graph, ops.concat(nodes, dim))


def _interpolate(x: Symbol, size: Sequence[int], mode: str = "nearest", **_: Any) -> Symbol:
    if mode != "nearest":
        raise Unsupported(f"the network enlarges by {mode}")
    return x.new(
        ops.interpolate(
            x.node,
            np.array(size, np.int64),
            "nearest",
            "sizes",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
            axes=np.array([2, 3], np.int64),
        )
    )


def _pad(x: Symbol, pads: Sequence[int], mode: str = "constant", value: Any = None) -> Symbol:
    before, after = [0] * x.ndim, [0] * x.ndim
    for i in range(len(pads) // 2):
        before[-1 - i], after[-1 - i] = pads[2 * i], pads[2 * i + 1]
    zero = x.graph.number(0)
    return x.new(ops.pad(x.node, np.array(before), np.array(after), "constant", zero))


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    F.conv2d: _conv2d,
    torch.conv2d: _conv2d,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.scaled_dot_product_attention: _attention,
    F.interpolate: _interpolate,
    F.pad: _pad,
    torch.cat: _cat,
    F.silu: lambda x, inplace=False: x.new(ops.swish(x.node, x.graph.number(1))),
    F.gelu: lambda x, approximate="none": x.new(
        ops.gelu(x.node, "tanh" if approximate == "tanh" else "erf")
    ),
    F.relu: lambda x, inplace=False: x.new(ops.relu(x.node)),
    torch.tanh: lambda x: x.new(ops.tanh(x.node)),
    F.pixel_unshuffle: lambda x, factor: x.new(ops.space_to_depth(x.node, "depth_first", factor)),
    F.pixel_shuffle: lambda x, factor: x.new(ops.depth_to_space(x.node, "depth_first", factor)),
    Tensor.__add__: lambda a, b: b + a if isinstance(a, Tensor) else a + b,
    Tensor.__mul__: lambda a, b: b * a if isinstance(a, Tensor) else a * b,
    Tensor.add: lambda a, b: b + a if isinstance(a, Tensor) else a + b,
    Tensor.mul: lambda a, b: b * a if isinstance(a, Tensor) else a * b,
}
"""What is called of PyTorch, and how it is written down."""
