"""A small network as one call of compiled C code, in bfloat16 on one thread.

For latents of 8x8 a step of the network is some 1,000 operations of PyTorch, and calling them takes
longer than their work. Here the operations are listed once for each size; `fused.c` does the list.
"""

from __future__ import annotations

import copy
import itertools
import struct
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.backbones.unet import UNet
from pellucid.cascade import SuperResolution, grid_waves
from pellucid.diffusion import Conditioning
from pellucid.model import Model
from pellucid.nn import sinusoid
from pellucid.runtime.backends import LARGE, Prepared, Rehearse, _native, packed
from pellucid.runtime.devices import takes_turns
from pellucid.runtime.precision import dtype_of, native_bfloat16
from pellucid.runtime.threads import SMALL, parameters_of, step_size

HELP = "small networks as compiled C code; for bfloat16 on a CPU, needs a C compiler"
PROGRAMS = 4
"""Lists of operations that are kept for each network."""
KEPT = 2**13
"""Places of all pictures of a batch up to which a list is kept: 32 MB for the included second stage."""
PLACES, LARGEST = 2**10, 2**16
"""Places of a picture up to which this computes a U-Net and a second stage; for larger ones PyTorch's
operations are as fast, and use more threads."""
BLOCK, ROWS, LANES, WIDEST = 32, 128, 16, 256  # as in fused.c
SIZE = 27  # numbers of the longest operation
PRODUCT, GROUP_NORM, LAYER_NORM, ATTENTION, JOIN = range(5)
NONE, SILU, GEGLU = range(3)
F32, BF16 = torch.float32, torch.bfloat16


def unsuitable(device: torch.device) -> str | None:
    """Why this cannot be used on a device; None if it can."""
    if device.type != "cpu":
        return f"fused runs on a CPU, not on {device.type}"
    if not native_bfloat16():
        return "fused needs a CPU with instructions for bfloat16"
    try:
        _native.library()
    except _native.NoLibrary as error:
        return f"fused needs compiled code: {error}"
    return None


_made: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
"""What computes a network, so that the next request with the same model has it at once."""


def prepare(model: Model, rehearse: Rehearse) -> Prepared:
    """The model with its network and its second stage as this computes them. A network that is large,
    in another number type or of another kind is left to `packed`. Raises Unsuitable."""
    prepared, warnings = packed.prepare(model, rehearse)
    network, second = model.backbone, model.second_stage
    if isinstance(prepared.backbone, packed.Packed):
        if network not in _made and _fits(model):
            _made[network] = FusedUNet(copy.copy(network), prepared.backbone.fast[0])
        if network in _made:
            prepared = replace(prepared, backbone=packed.Packed(network, _made[network]))
    if type(second) is SuperResolution and dtype_of(second) == BF16 and not takes_turns(second):
        if second not in _made:
            _made[second] = SecondStage(copy.copy(second))
        prepared = replace(prepared, second_stage=_made[second])
    return prepared, warnings


def _fits(model: Model) -> bool:
    network: Any = model.backbone
    if type(network) is not UNet or network.config.patch_size > 1:
        return False
    config = network.config
    widths = zip(config.block_out_channels, config.heads, strict=True)
    heads = all(width / n % LANES == 0 and width / n <= WIDEST for width, n in widths)
    small = parameters_of(model) < LARGE and step_size(model) <= SMALL
    return small and heads and all(map(packed.known, network.modules()))


# ---------------------------------------------------------------- lists of operations


class Picture(NamedTuple):
    """Rows of channels, one for each position: (batch * height * width or more, channels)."""

    rows: Tensor
    height: int
    width: int
    border: bool = False
    """Whether there is a border of zeros, one position wide."""


class Weights:
    """The weights of layers in the order in which `fused.c` reads them."""

    def __init__(self) -> None:
        self.made: dict[tuple[int, ...], tuple[Tensor, Tensor, int]] = {}

    def of(self, *layers: Any, gated: bool = False) -> tuple[Tensor, Tensor, int]:
        """Of layers with the same input as one: weight, bias, how many outputs. gated: the second half
        of the outputs are gates; each 16 of them follow the 16 that they belong to."""
        key = tuple(map(id, layers))
        if key not in self.made:
            weight = _joined([_matrix(layer) for layer in layers])
            bias = _joined([_bias(layer) for layer in layers])
            if gated:
                halves = [each.unflatten(0, (2, -1, LANES)) for each in (weight, bias)]
                weight, bias = (each.transpose(0, 1).flatten(0, 2) for each in halves)
            outputs, depth = weight.shape
            if depth % BLOCK or outputs % BLOCK:
                weight = F.pad(weight, (0, -depth % BLOCK, 0, -outputs % BLOCK))
            pairs = weight.contiguous().view(torch.int32)  # two inputs, which stay together
            tiles = pairs.unflatten(0, (-1, 2, LANES)).unflatten(3, (-1, LANES))
            self.made[key] = tiles.permute(0, 3, 1, 4, 2).contiguous(), bias, outputs
        return self.made[key]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def _matrix(layer: Any) -> Tensor:
    """(outputs, inputs); of a convolution the inputs are (height, width, channels)."""
    weight: Tensor = layer.weight.detach()
    return weight.permute(0, 2, 3, 1).flatten(1) if weight.ndim == 4 else weight


def _bias(layer: Any) -> Tensor:
    if layer.bias is None:
        return torch.zeros(len(layer.weight))
    return cast(Tensor, layer.bias.detach().float())


class Program:
    """Operations, and the memory that they work in."""

    def __init__(self, weights: Weights, batch: int) -> None:
        self.weights, self.batch = weights, batch
        self.operations: list[list[int]] = []
        self.kept: list[Tensor] = []
        self.named: dict[Any, Tensor] = {}
        self.list: Tensor | None = None

    def run(self) -> None:
        """Do all of them."""
        if self.list is None:
            rows = [row + [0] * (SIZE - len(row)) for row in self.operations]
            self.list = torch.tensor(rows, dtype=torch.int64)
        _native.library().run(self.list.data_ptr(), len(self.list), SIZE)

    def memory(self, rows: int, channels: int, dtype: torch.dtype, name: str = "") -> Tensor:
        """For rows of channels. What has a name shares it with others of the same name and size."""
        key = name, rows, channels, dtype
        if name and key in self.named:
            return self.named[key]
        made = torch.zeros(rows + -rows % BLOCK, channels, dtype=dtype)
        self.kept.append(made)
        if name:
            self.named[key] = made
        return made

    def pixels(self, x: Picture) -> Tensor:
        """The rows as (batch, channels, height, width)."""
        rows = x.rows[: self.batch * x.height * x.width]
        return rows.view(self.batch, x.height, x.width, -1).permute(0, 3, 1, 2)

    def add(self, *values: Tensor | float | None) -> None:
        """An operation; the values are those of its struct in `fused.c`."""
        self.operations.append([])
        self.more(*values)

    def more(self, *values: Tensor | float | None) -> None:
        """The next values of an operation."""
        for value in values:
            if isinstance(value, Tensor):
                self.kept.append(value)
                value = value.data_ptr()
            elif isinstance(value, float):
                (value,) = struct.unpack("q", struct.pack("d", value))
            self.operations[-1].append(int(value or 0))

    def linear(
        self,
        x: Tensor,
        layers: Sequence[Any],
        out: Tensor,
        plus: Tensor | None = None,
        activation: int = NONE,
    ) -> Tensor:
        """Layers with the same input; `out` is what they give, plus `plus`, after the activation."""
        self._product(x, len(out), (0,) * 10, (layers, out, plus, activation))
        return out

    def conv(
        self,
        x: Picture,
        layer: Any,
        name: str = "",
        plus: Tensor | None = None,
        seen: tuple[int, int] | None = None,
    ) -> Picture:
        """A convolution in float32. seen: the size that x is enlarged to first."""
        size = seen or (x.height, x.width)
        kernel, stride, pad = layer.kernel_size[0], layer.stride[0], layer.padding[0]
        height, width = ((side + 2 * pad - kernel) // stride + 1 for side in size)
        rows = self.batch * height * width
        out = self.memory(rows, layer.out_channels, F32, name)
        where = kernel, x.border, x.height, x.width, *size, height, width, stride, pad
        self._product(x.rows, rows, where, ((layer,), out, plus, NONE))
        return Picture(out, height, width)

    def _product(self, x: Tensor, rows: int, where: Sequence[int], what: Sequence[Any]) -> None:
        layers, out, plus, activation = what
        weight, bias, outputs = self.weights.of(*layers, gated=activation == GEGLU)
        depth = weight.shape[1] * BLOCK
        panel = self.memory(ROWS, depth, BF16, "panel")
        self.add(PRODUCT, x, x.dtype == F32, x.stride(0), rows, *where, x.shape[1], depth, outputs)
        self.more(weight, bias, plus, 0 if plus is None else plus.stride(0), activation)
        self.more(out, out.dtype == F32, out.stride(0), panel)

    def norm(
        self, x: Picture, layer: Any, film: Sequence[Tensor | None] = (), silu: bool = False
    ) -> Picture:
        """A group norm or a norm over channels, in bfloat16. film: (batch, channels) each, or None: what
        is added before, what the result is scaled by (1 + that), what is added after that. silu: a
        convolution follows, so that the result gets a border where the convolution can use it."""
        places, (_, channels) = x.height * x.width, x.rows.shape
        before, scale, after = [*film, None, None, None][:3]
        step = next((each.stride(0) for each in film if each is not None), 0)
        border = silu and x.width % LANES == 0 and channels % BLOCK == 0
        rows = (x.height + 2) * (x.width + 2) if border else places
        name = f"norm {x.height} {x.width} {border}"  # what is in the border stays there
        out = self.memory(self.batch * rows, channels, BF16, name)
        groups, eps = getattr(layer, "num_groups", 0), getattr(layer, "eps", 1e-5)
        kind = GROUP_NORM if groups else LAYER_NORM
        self.add(kind, x.rows, channels, self.batch, places, channels, groups, float(eps))
        self.more(layer.weight.detach().float(), layer.bias.detach().float(), before, scale, after)
        room = self.memory(2, channels, F32, "channels")
        self.more(step, SILU if silu else NONE, out, channels, x.width if border else 0, room)
        return Picture(out, x.height, x.width, border)

    def attention(self, q: Tensor, kv: Tensor, heads: int, sizes: tuple[int, int]) -> Tensor:
        """Multi-head attention of queries to keys and values, which lie side by side. sizes: the queries
        and the keys of a picture."""
        queries, keys = sizes
        width = kv.shape[1] // 2
        out = self.memory(self.batch * queries, width, BF16, "attention")
        room = self.memory(2 * width // heads + 4, keys + LANES, F32, "maps")
        self.add(ATTENTION, q, kv, kv[:, width:], q.stride(0), kv.stride(0), self.batch, heads)
        self.more(queries, keys, width // heads, out, width, room)
        return out

    def join(self, a: Picture, b: Picture) -> Picture:
        """The channels of both, at the size of b."""
        widths = a.rows.shape[1], b.rows.shape[1]
        out = self.memory(self.batch * b.height * b.width, sum(widths), F32, "join")
        self.add(JOIN, a.rows, b.rows, *widths, self.batch, *a[1:3], *b[1:3], out)
        return b._replace(rows=out)


class Programs:
    """The programs of a network by the shape of its input, the last ones used."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make, self.made = make, dict[Any, Any]()
        self.lock = threading.Lock()  # they have memory of their own

    def of(self, batch: int, size: tuple[int, int], *more: int) -> Any:
        """The one for a batch, a height and width, and what else it depends on."""
        shape = batch, size, *more
        program = self.made.pop(shape, None) or self.make(*shape)
        if batch * size[0] * size[1] <= KEPT:
            self.made[shape] = program
        while len(self.made) > PROGRAMS:
            del self.made[next(iter(self.made))]
        return program


# ---------------------------------------------------------------- the U-Net


class FusedUNet:
    """A U-Net as programs; called as the network is. rest: computes what depends on the text alone, and
    large pictures."""

    def __init__(self, network: Any, rest: Any) -> None:
        self.rest, weights = rest, Weights()
        self.programs = Programs(lambda *shape: UNetProgram(network, weights, *shape))

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """x (B, C, h, w) of any type -> (B, C, h, w) in float32."""
        batch, _, height, width = x.shape
        if height * width > PLACES:
            return cast(Tensor, self.rest(x, t, cond))
        with self.programs.lock:
            program: UNetProgram = self.programs.of(batch, (height, width), cond.tokens.shape[1])
            program.read(self.rest, cond)
            return program(x, t)


class UNetProgram:
    """The programs of a U-Net for one size: of the text, and of a step."""

    def __init__(
        self, network: Any, weights: Weights, batch: int, size: tuple[int, int], tokens: int
    ) -> None:
        config, self.length = network.config, tokens
        self.text, self.step = Program(weights, batch), Program(weights, batch)
        self.cond: Conditioning | None = None
        time_width, step = 4 * config.block_out_channels[0], self.step
        self.tokens = step.memory(batch * tokens, config.cross_attention_dim, BF16)
        self.waves = step.memory(batch, config.block_out_channels[0], BF16)
        self.pooled = step.memory(batch, time_width, F32)
        channels = config.in_channels + config.map_channels
        x = Picture(step.memory(batch * size[0] * size[1], channels, F32), *size)
        self.x = step.pixels(x)
        self.times = self._times(network, time_width)
        self.out = step.pixels(self._body(network, x))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """As the network's, for the text that was read last."""
        self.x[:, : x.shape[1]] = x
        self.waves[: len(x)] = sinusoid(t, self.waves.shape[1])
        self.step.run()
        return self.out.clone(memory_format=torch.contiguous_format)

    def read(self, rest: Any, cond: Conditioning) -> None:
        """What depends on the text alone, where it is another one than before. rest: computes the
        embeddings of its pooled vector."""
        last = self.cond
        if last is not None and all(map(_same, _parts(last), _parts(cond))):
            return
        self.tokens[: len(cond) * self.length] = cond.tokens.flatten(0, 1)
        self.text.run()
        if rest.config.pooled_dim > 0:
            self.pooled[: len(cond)] = rest.embed_text(cond, BF16)
        if rest.config.map_channels > 0:
            x = self.x[:, : rest.config.in_channels]
            self.x[:, rest.config.in_channels :] = rest.draw_map(x.to(BF16), cond)
        self.cond = cond

    def _times(self, network: Any, width: int) -> Iterator[Tensor]:
        """What the time adds to and scales in each residual block, in the order in which they run."""
        step, embedding = self.step, network.time_embedding
        parts = (*network.down_blocks, network.mid_block, *network.up_blocks)
        blocks: list[Any] = [block for part in parts for block in part.resnets]
        layers = [each for b in blocks for each in (b.time_emb_proj, b.time_scale_proj) if each]
        hidden, time = (step.memory(step.batch, width, BF16) for _ in range(2))
        step.linear(self.waves, [embedding.linear_1], hidden, None, SILU)
        step.linear(hidden, [embedding.linear_2], time, self.pooled, SILU)
        widths = [layer.out_features for layer in layers]
        every = step.linear(time, layers, step.memory(step.batch, sum(widths), F32))
        return iter(every.split(widths, dim=1))

    def _body(self, network: Any, x: Picture) -> Picture:
        step = self.step
        x = step.conv(x, network.conv_in)
        kept = [x]
        for down in network.down_blocks:
            for resnet, attention in itertools.zip_longest(down.resnets, down.attentions):
                x = self._residual(x, resnet)
                x = x if attention is None else self._transformer(x, attention)
                kept.append(x)
            for downsampler in down.downsamplers:
                x = step.conv(x, downsampler.conv)
                kept.append(x)
        x = self._residual(x, network.mid_block.resnets[0])
        for attention in network.mid_block.attentions:
            x = self._transformer(x, attention)
        x = self._residual(x, network.mid_block.resnets[1])
        for up in network.up_blocks:
            for resnet, attention in itertools.zip_longest(up.resnets, up.attentions):
                x = self._residual(step.join(x, kept.pop()), resnet)
                x = x if attention is None else self._transformer(x, attention)
            for upsampler in up.upsamplers:
                x = step.conv(x, upsampler.conv, seen=kept[-1][1:3])
        return step.conv(step.norm(x, network.conv_norm_out, silu=True), network.conv_out)

    def _residual(self, x: Picture, block: Any) -> Picture:
        step = self.step
        film = [next(self.times), None if block.time_scale_proj is None else next(self.times)]
        h = step.conv(step.norm(x, block.norm1, silu=True), block.conv1, "residual")
        shortcut = block.conv_shortcut
        same = x if shortcut is None else step.conv(x, shortcut, "shortcut")
        return step.conv(step.norm(h, block.norm2, film, silu=True), block.conv2, plus=same.rows)

    def _transformer(self, x: Picture, layer: Any) -> Picture:
        step, (_, channels) = self.step, x.rows.shape
        places = x.height * x.width
        size = step.batch * places

        def linear(x: Tensor, layers: Sequence[Any], width: int, activation: int = NONE) -> Tensor:
            out = step.memory(size, width, BF16, "product")
            return step.linear(x, layers, out, activation=activation)

        h = step.memory(size, channels, F32, "stream")
        step.linear(step.norm(x, layer.norm).rows, [layer.proj_in], h)
        stream = x._replace(rows=h)
        for block in layer.transformer_blocks:
            own, text, (gates, _, down) = block.attn1, block.attn2, block.ff.net
            y = step.norm(stream, block.norm1).rows
            qkv = linear(y, [own.to_q, own.to_k, own.to_v], 3 * channels)
            y = step.attention(qkv, qkv[:, channels:], own.heads, (places, places))
            step.linear(y, [own.to_out[0]], h, h)
            kv = self.text.memory(step.batch * self.length, 2 * channels, BF16)
            self.text.linear(self.tokens, [text.to_k, text.to_v], kv)
            q = linear(step.norm(stream, block.norm2).rows, [text.to_q], channels)
            y = step.attention(q, kv, text.heads, (places, self.length))
            step.linear(y, [text.to_out[0]], h, h)
            y = step.norm(stream, block.norm3).rows
            step.linear(linear(y, [gates.proj], 4 * channels, GEGLU), [down], h, h)
        out = step.memory(size, channels, F32)
        return x._replace(rows=step.linear(h, [layer.proj_out], out, x.rows))


def _parts(cond: Conditioning) -> tuple[Tensor | None, ...]:
    return cond.tokens, cond.pooled, cond.sizes


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


# ---------------------------------------------------------------- the second stage


class SecondStage(nn.Module):
    """A super-resolution network as programs; called as the network is."""

    def __init__(self, network: SuperResolution) -> None:
        super().__init__()
        self.network, self.config, weights = network, network.config, Weights()
        self.programs = Programs(lambda *shape: SecondStageProgram(network, weights, *shape))

    def forward(self, x: Tensor, t: Tensor, small: Tensor, noise: Tensor) -> Tensor:
        """As the network's; where it was changed to float32, the network computes itself."""
        batch, _, height, width = small.shape
        if dtype_of(self.network) != BF16 or height * width > LARGEST:
            return cast(Tensor, self.network(x, t, small, noise))
        with self.programs.lock:
            program: SecondStageProgram = self.programs.of(batch, (height, width))
            return program(x, self.network.embed(t, noise, BF16), small)


class SecondStageProgram:
    """The program of a super-resolution network for one size."""

    def __init__(self, network: Any, weights: Weights, batch: int, size: tuple[int, int]) -> None:
        self.config, self.program = network.config, Program(weights, batch)
        channels = network.conv_in.in_channels
        x = Picture(self.program.memory(batch * size[0] * size[1], channels, BF16), *size)
        self.x = self.program.pixels(x)
        if self.config.period > 0:
            self.x[:, -4:] = grid_waves(self.x, self.config.period)
        self.embedding = self.program.memory(batch, 4 * self.config.embedding, BF16)
        self.out = self.program.pixels(self._body(network, x))

    def __call__(self, x: Tensor, embedding: Tensor, small: Tensor) -> Tensor:
        """x, small as the network gets them; embedding: of the time and the noise."""
        folded = x.shape[1] * self.config.factor**2
        self.x[:, :folded] = F.pixel_unshuffle(x, self.config.factor)
        self.x[:, folded : folded + small.shape[1]] = small
        self.embedding[: len(x)] = embedding
        self.program.run()
        return F.pixel_shuffle(self.out, self.config.factor)

    def _body(self, network: Any, x: Picture) -> Picture:
        program = self.program
        x = program.conv(x, network.conv_in)
        kept = []
        for blocks, downsampler in itertools.zip_longest(network.down_blocks, network.downsamplers):
            for block in blocks:
                x = self._block(x, block)
                kept.append(x)
            if downsampler is not None:
                x = program.conv(x, downsampler)
        x = self._block(x, network.mid_block)
        for blocks in network.up_blocks:
            for block in blocks:
                x = self._block(program.join(x, kept.pop()), block)
        return program.conv(program.norm(x, network.norm_out, silu=True), network.conv_out)

    def _block(self, x: Picture, block: Any) -> Picture:
        program, channels = self.program, block.conv2.out_channels
        film = program.memory(program.batch, 2 * channels, F32)
        program.linear(self.embedding, [block.film], film)
        h = program.conv(program.norm(x, block.norm1, silu=True), block.conv1, "residual")
        same = (
            x if block.conv_shortcut is None else program.conv(x, block.conv_shortcut, "shortcut")
        )
        scaled = program.norm(h, block.norm2, (None, *film.split(channels, dim=1)), silu=True)
        return program.conv(scaled, block.conv2, plus=same.rows)
