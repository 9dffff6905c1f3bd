"""The blocks that the networks share: time embedding, residual block, attention, re-sampling.

The names of the parameters are those of diffusers, so that published weights load as they are.
Everything works in any memory format; on a CPU ``channels_last`` is the fast one, and in that
format going from a picture (B, C, h, w) to its tokens (B, h*w, C) and back copies nothing.
"""

from __future__ import annotations

import itertools
import math
import os
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionRecorder(Protocol):
    """Receives attention maps; a ``list`` is enough."""

    def append(self, weights: Tensor, /) -> None:
        """Take one layer's map."""


def sinusoid(values: Tensor, width: int) -> Tensor:
    """Numbers as waves, cosines first: (N,) -> (N, width), float32.

    "Attention is all you need" (Vaswani et al. 2017), section 3.5, with the order and the
    frequencies 10000^(-2i / width) of the latent diffusion models. `width` must be even.
    """
    if width % 2:
        raise ValueError(f"the width of a sinusoidal embedding must be even, got {width}")
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values.float()[:, None] * torch.exp(-math.log(10000) / half * steps)  # (N, half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Two linear layers: (B, width_in) -> (B, width)."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, plus a shortcut: (B, C_in, h, w) -> (B, C_out, h, w).

    `time_width` is the width of the vector that is added between the convolutions; 0 for none. With
    `film` it also scales each channel there (FiLM, Perez et al. 2017, arXiv:1709.07871, eq. 2).
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        time_width: int,
        groups: int,
        eps: float,
        film: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, eps)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        if time_width > 0:
            self.time_emb_proj = nn.Linear(time_width, channels_out)
        self.time_scale_proj = nn.Linear(time_width, channels_out) if film else None
        self.norm2 = nn.GroupNorm(groups, channels_out, eps)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.conv_shortcut = (
            nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None
        )

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """`time` (B, time_width) has been through SiLU already: all blocks share that."""
        h = self.conv1(F.silu(self.norm1(x)))
        if time is not None:
            h = h + self.time_emb_proj(time)[:, :, None, None]
        h = self.norm2(h)
        if time is not None and self.time_scale_proj is not None:
            h = h * (1 + self.time_scale_proj(time)[:, :, None, None])
        h = self.conv2(F.silu(h))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Half the height and width, by a convolution with stride 2.

    The autoencoder pads on the right and below only (`symmetric` False), the U-Net all around.
    """

    def __init__(self, channels: int, symmetric: bool = True) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if symmetric else 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbours, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """To (height, width) `size`; twice the input's, or one less where that was odd."""
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


MAP_BYTES = 2**28
"""A map of attention that is larger than this is not formed whole where that can be avoided."""


BLOCK = 2**20
"""Places of a block of a map for each thread: 2 MB in bfloat16, about what a core's cache holds."""
BLOCK_PLACES = 2**14
"""A smaller map is not worth a loop."""


def attend(q: Tensor, k: Tensor, v: Tensor, record: AttentionRecorder | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v ("Attention is all you need", equation 1).

    q (B, heads, N, d); k, v (B, heads, L, d) -> (B, heads, N, d). The fused kernel never forms
    the map (B, heads, N, L); with `record` it is formed, appended there, and used. Where there is
    no such kernel, a map of more than `MAP_BYTES` is formed a slice of the queries at a time (Rabe
    & Staats 2021, arXiv:2112.05682, section 2).
    """
    map_bytes = q.shape[:-1].numel() * k.shape[-2] * q.element_size()
    if record is None:
        # On a CPU the backward pass of the fused kernel is slow in bfloat16: 22% of a training
        # step.
        on_cpu = q.dtype == torch.bfloat16 and q.device.type == "cpu"
        large = q.shape[-2] * k.shape[-2] >= BLOCK_PLACES
        if on_cpu and large and not q.requires_grad and not has_amx():
            return attend_in_blocks(q, k, v)
        slow = on_cpu and q.requires_grad
        if not slow if map_bytes <= MAP_BYTES else avoids_map(q, k, v):
            return F.scaled_dot_product_attention(q, k, v)
    rows = max(1, q.shape[-2] * MAP_BYTES // max(map_bytes, 1))
    maps: list[Tensor] = []
    parts = []
    for part in q.split(rows, dim=-2):
        weights = (part @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        if record is not None:
            maps.append(weights)
        parts.append(weights.to(v.dtype) @ v)
    if record is not None:
        record.append(torch.cat(maps, dim=-2) if len(maps) > 1 else maps[0])
    return torch.cat(parts, dim=-2) if len(parts) > 1 else parts[0]


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As `attend`, a block of one head's queries at a time: for bfloat16 on a CPU without AMX.

    There the fused kernel does not use the processor's bfloat16 for its products. On an AMD EPYC
    (Zen 5), blocks that stay in the cache take half its time for 4,096 places and 40 numbers a head.
    """
    queries, keys = q.shape[-2], k.shape[-2]
    rows = max(1, min(queries, BLOCK * torch.get_num_threads() // keys))
    out = torch.empty(q.transpose(1, 2).shape, dtype=q.dtype).transpose(1, 2)
    q = q / math.sqrt(q.shape[-1])
    products, weights = torch.empty(2, rows, keys, dtype=q.dtype)
    for image, head in itertools.product(range(q.shape[0]), range(q.shape[1])):
        across, values = k[image, head].T, v[image, head]
        for begin in range(0, queries, rows):
            part = q[image, head, begin : begin + rows]
            score, weight = products[: len(part)], weights[: len(part)]
            torch.softmax(torch.mm(part, across, out=score), -1, out=weight)
            out[image, head, begin : begin + rows] = weight @ values
    return out


def onednn_limit() -> str:
    """The instructions that oneDNN is limited to by its environment variable, or "ALL"."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "ALL")).upper()


def has_amx() -> bool:
    """Whether this CPU has AMX, products of matrices in 8 bits and in bfloat16, and oneDNN may use
    it."""
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    limit = onednn_limit()
    return bool(able.get("amx_int8")) and any(isa in limit for isa in ("AMX", "DEFAULT", "ALL"))


def avoids_map(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether `scaled_dot_product_attention` has a kernel for these that never forms the map.

    On a CPU it always has. On CUDA that depends on the card, the type and the width. On other
    devices, such as Apple's, there is none for every size.
    """
    if q.device.type != "cuda":
        return q.device.type in ("cpu", "meta")  # meta: shapes alone, nothing is formed
    cuda = torch.backends.cuda
    asked = cuda.SDPAParams(q, k, v, None, 0.0, False, False)
    return cuda.can_use_flash_attention(asked) or cuda.can_use_efficient_attention(asked)


class Attention(nn.Module):
    """Multi-head attention of x (B, N, width) to `context` (B, L, context_width), or to itself.

    `bias` is that of the projections to q, k and v; the one on the way out always has one.
    """

    def __init__(self, width: int, context_width: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads {heads} does not divide the attention width {width}")
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(context_width, width, bias=bias)
        self.to_v = nn.Linear(context_width, width, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(
        self, x: Tensor, context: Tensor | None = None, record: AttentionRecorder | None = None
    ) -> Tensor:
        context = x if context is None else context
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N or L, d)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out[0](attend(q, k, v, record).transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """A linear layer gated by a second one through GELU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, width: int, width_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * width_out)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width, then a linear layer back: (B, N, C) -> (B, N, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The published weights count a dropout as number 1.
        self.net = nn.Sequential(
            GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text, feed-forward: (B, N, C) -> (B, N, C)."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, context_width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(
        self, x: Tensor, context: Tensor, record: AttentionRecorder | None = None
    ) -> Tensor:
        """`record` takes the map of the attention to the text, (B, heads, N, L)."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context, record)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the places of a picture, as one residual branch.

    (B, C, h, w) -> (B, C, h, w). The projections in and out are linear layers or, in older
    models (`linear` False), convolutions of size 1, which compute the same.
    """

    def __init__(
        self, channels: int, context_width: int, heads: int, layers: int, groups: int, linear: bool
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in: nn.Module
        self.proj_out: nn.Module
        if linear:
            self.proj_in = nn.Linear(channels, channels)
            self.proj_out = nn.Linear(channels, channels)
        else:
            self.proj_in = nn.Conv2d(channels, channels, 1)
            self.proj_out = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, context_width, heads) for _ in range(layers)
        )
        self.linear = linear

    def forward(
        self, x: Tensor, context: Tensor, record: AttentionRecorder | None = None
    ) -> Tensor:
        """`record` takes each block's attention to the text as (B, heads, h, w, L)."""
        size = x.shape[2:]
        h = self.norm(x)
        if not self.linear:
            h = self.proj_in(h)
        h = h.flatten(2).transpose(1, 2)  # (B, h*w, C)
        if self.linear:
            h = self.proj_in(h)
        maps: list[Tensor] | None = None if record is None else []
        for block in self.transformer_blocks:
            h = block(h, context, maps)
        if record is not None and maps is not None:
            for weights in maps:
                record.append(weights.unflatten(2, size))
        if self.linear:
            h = self.proj_out(h)
        h = h.transpose(1, 2).unflatten(2, size)  # (B, C, h, w)
        if not self.linear:
            h = self.proj_out(h)
        return x + h


class PictureAttention(nn.Module):
    """Self-attention with one head over the places of a picture, as one residual branch.

    (B, C, h, w) -> (B, C, h, w); the autoencoder's.
    """

    def __init__(self, channels: int, groups: int, eps: float) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)[:, None]  # (B, 1, h*w, C)
        h = self.to_out[0](attend(self.to_q(h), self.to_k(h), self.to_v(h)))
        return x + h[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])
