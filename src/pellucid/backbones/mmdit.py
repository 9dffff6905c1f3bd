"""The flow-matching transformer of Stable Diffusion 3: MMDiT.

"Scaling rectified flow transformers" (Esser et al. 2024, arXiv:2403.03206), section 4 and figure 2.
Patches of the latent and tokens of the text go through the same layers side by side, each with
weights of its own, and attend to all of both. The time and the pooled text scale and shift what
every layer sees and gives ("adaptive layer norm", Peebles & Xie 2022, arXiv:2212.09748). The
parameters have the names that diffusers gives them (SD3Transformer2DModel).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.nn import AttentionRecorder, TimestepEmbedding, attend, sinusoid

if TYPE_CHECKING:
    from pellucid.diffusion import Conditioning


@dataclass(frozen=True)
class MMDiTConfig:
    """The shape of a transformer. `dual_attention_layers` are the numbers of those that attend twice,
    the second time among the patches only."""

    in_channels: int = 16
    out_channels: int = 16
    patch_size: int = 2
    layers: int = 24
    heads: int = 24
    head_width: int = 64
    cross_attention_dim: int = 4096  # width of the text's tokens
    pooled_dim: int = 2048  # width of the pooled text, that of both CLIPs
    sample_size: int = 128  # of the latents that positions are counted by
    max_patches: int = 192  # the longest side for which there are positions, in patches
    qk_norm: bool = False  # queries and keys get unit size (Dehghani et al. 2023, section 2)
    dual_attention_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("patch_size", "layers", "heads", "head_width", "max_patches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % 4:
            raise ValueError(
                "heads * head_width must be a multiple of 4, for a sine and a cosine of both "
                f"directions, got {self.heads} * {self.head_width}"
            )

    @property
    def width(self) -> int:
        """Of every patch and token between the layers."""
        return self.heads * self.head_width


SD3_MEDIUM = MMDiTConfig()

TIME_WIDTH = 256  # of the sinusoid of the time
NORM_EPS = 1e-6


def position_table(width: int, side: int, base: float) -> Tensor:
    """The place of every patch as waves, (1, side * side, width), row by row.

    Half of the width encodes the column, half the row; each is counted so that the whole side is
    `base` long ("Attention is all you need", section 3.5, in two directions).
    """
    places = torch.arange(side, dtype=torch.float32) / (side / base)
    speeds = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.outer(places.double(), speeds)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1).float()  # (side, width / 2)
    columns = waves[None].expand(side, -1, -1)
    rows = waves[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)[None]


class Patches(nn.Module):
    """Latents cut into patches that know their place: (B, C, h, w) -> (B, N, width)."""

    pos_embed: Tensor

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.patch_size, self.side = config.patch_size, config.max_patches
        self.proj = nn.Conv2d(
            config.in_channels, config.width, config.patch_size, stride=config.patch_size
        )
        base = config.sample_size // config.patch_size
        table = position_table(config.width, config.max_patches, base)
        self.register_buffer("pos_embed", table)  # the published files hold it

    def forward(self, x: Tensor) -> Tensor:
        """ValueError for a size that cannot be cut into patches, or has no places in the table."""
        patch, size = self.patch_size, x.shape[2:]
        if size[0] % patch or size[1] % patch:
            raise ValueError(
                f"the latents are {size[1]} wide and {size[0]} high; multiples of {patch} are needed"
            )
        height, width = size[0] // patch, size[1] // patch
        if max(height, width) > self.side:
            most = self.side * patch
            raise ValueError(
                f"the latents are {size[1]} wide and {size[0]} high; this network supports "
                f"latents of at most {most}x{most}"
            )
        top, left = (self.side - height) // 2, (self.side - width) // 2
        table = self.pos_embed.unflatten(1, (self.side, self.side))
        positions = table[:, top : top + height, left : left + width].flatten(1, 2)
        return self.proj(x).flatten(2).transpose(1, 2) + positions


class TimeTextEmbedding(nn.Module):
    """The time and the pooled text as one vector, (B, width)."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(TIME_WIDTH, config.width)
        self.text_embedder = TimestepEmbedding(config.pooled_dim, config.width)

    def forward(self, t: Tensor, pooled: Tensor) -> Tensor:
        time = self.timestep_embedder(sinusoid(t, TIME_WIDTH).to(pooled.dtype))
        return time + self.text_embedder(pooled)


class Modulation(nn.Module):
    """The adaLN modulation of a layer: `parts` shift, scale or gate vectors, each (B, 1, width)."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """embedding: (B, width), after SiLU, which all layers share."""
        return self.linear(embedding)[:, None].chunk(self.parts, dim=-1)


def norm(x: Tensor) -> Tensor:
    """Layer norm without weights of its own."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def modulated(normed: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return normed * (1 + scale) + shift


class GELU(nn.Module):
    """A linear layer and GELU, by its formula with tanh (Hendrycks & Gimpel 2016, section 2)."""

    def __init__(self, width: int, width_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, width_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """GELU to four times the width, then a linear layer back: (B, N, C) -> (B, N, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The published weights count a dropout as number 1.
        self.net = nn.Sequential(GELU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PatchAttention(nn.Module):
    """What both kinds of attention have: the projections of the patches."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.to_q = nn.Linear(config.width, config.width)
        self.to_k = nn.Linear(config.width, config.width)
        self.to_v = nn.Linear(config.width, config.width)
        self.to_out = nn.ModuleList([nn.Linear(config.width, config.width)])
        self.norm_q, self.norm_k = unit_size(config), unit_size(config)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the patches, each (B, heads, N, head_width)."""
        q, k, v = (self.split(y) for y in (self.to_q(x), self.to_k(x), self.to_v(x)))
        return self.norm_q(q), self.norm_k(k), v

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def unit_size(config: MMDiTConfig) -> nn.Module:
    return nn.RMSNorm(config.head_width, eps=NORM_EPS) if config.qk_norm else nn.Identity()


class SelfAttention(PatchAttention):
    """Of the patches among each other: (B, N, width) -> (B, N, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out[0](attend(*self.project(x)).transpose(1, 2).flatten(2))


class JointAttention(PatchAttention):
    """Of patches and tokens to all of both, each with projections of its own.

    `last`: nothing comes after that would need the tokens.
    """

    def __init__(self, config: MMDiTConfig, last: bool) -> None:
        super().__init__(config)
        self.add_q_proj = nn.Linear(config.width, config.width)
        self.add_k_proj = nn.Linear(config.width, config.width)
        self.add_v_proj = nn.Linear(config.width, config.width)
        self.to_add_out = None if last else nn.Linear(config.width, config.width)
        self.norm_added_q, self.norm_added_k = unit_size(config), unit_size(config)

    def forward(
        self, x: Tensor, text: Tensor, record: AttentionRecorder | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, N, width) and text (B, L, width) -> what each takes in, of the same shapes.

        `record` takes the patches' attention to the tokens, (B, heads, N, L); its rows add up to
        less than 1, as patches attend to patches too.
        """
        patches = x.shape[1]
        projected = self.add_q_proj(text), self.add_k_proj(text), self.add_v_proj(text)
        text_q, text_k, text_v = (self.split(y) for y in projected)
        added = self.norm_added_q(text_q), self.norm_added_k(text_k), text_v
        q, k, v = (torch.cat(both, dim=2) for both in zip(self.project(x), added, strict=True))
        maps: list[Tensor] | None = None if record is None else []
        out = attend(q, k, v, maps).transpose(1, 2).flatten(2)
        if record is not None and maps is not None:
            # A copy, so that the rest of the map can go.
            record.append(maps.pop()[:, :, :patches, patches:].clone())
        seen, read = self.to_out[0](out[:, :patches]), out[:, patches:]
        return seen, read if self.to_add_out is None else self.to_add_out(read)


class Layer(nn.Module):
    """Joint attention and feed-forward; the last one leaves the tokens as they are."""

    def __init__(self, config: MMDiTConfig, number: int) -> None:
        super().__init__()
        width = config.width
        self.last = number == config.layers - 1
        self.dual = number in config.dual_attention_layers
        self.norm1 = Modulation(width, 9 if self.dual else 6)
        self.norm1_context = Modulation(width, 2 if self.last else 6)
        self.attn = JointAttention(config, self.last)
        if self.dual:
            self.attn2 = SelfAttention(config)
        self.ff = FeedForward(width)
        if not self.last:
            self.ff_context = FeedForward(width)

    def forward(
        self, x: Tensor, text: Tensor, embedding: Tensor, record: AttentionRecorder | None
    ) -> tuple[Tensor, Tensor]:
        """x (B, N, width), text (B, L, width), embedding (B, width) -> x and text after this layer."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate, *second = self.norm1(embedding)
        text_modulation = self.norm1_context(embedding)
        # With two parts only, as in norm_out, the scale comes first.
        text_shift, text_scale = text_modulation[::-1] if self.last else text_modulation[:2]
        normed = norm(x)
        seen, read = self.attn(
            modulated(normed, shift, scale), modulated(norm(text), text_shift, text_scale), record
        )
        x = x + gate * seen
        if self.dual:
            shift, scale, gate = second
            x = x + gate * self.attn2(modulated(normed, shift, scale))
        x = x + mlp_gate * self.ff(modulated(norm(x), mlp_shift, mlp_scale))
        if not self.last:
            text_gate, text_mlp_shift, text_mlp_scale, text_mlp_gate = text_modulation[2:]
            text = text + text_gate * read
            normed = modulated(norm(text), text_mlp_shift, text_mlp_scale)
            text = text + text_mlp_gate * self.ff_context(normed)
        return x, text


class MMDiT(nn.Module):
    """The transformer whole."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.pos_embed = Patches(config)
        self.time_text_embed = TimeTextEmbedding(config)
        self.context_embedder = nn.Linear(config.cross_attention_dim, config.width)
        self.transformer_blocks = nn.ModuleList(Layer(config, i) for i in range(config.layers))
        self.norm_out = Modulation(config.width, 2)
        self.proj_out = nn.Linear(config.width, config.patch_size**2 * config.out_channels)

    def forward(
        self, x: Tensor, t: Tensor, cond: Conditioning, record: AttentionRecorder | None = None
    ) -> Tensor:
        """What the network predicts (the velocity of the flow), (B, out_channels, h, w).

        x (B, in_channels, h, w) with h and w multiples of patch_size; t (B,), from 0 to 1000, may
        be fractional; cond.tokens (B, L, cross_attention_dim); cond.pooled (B, pooled_dim).
        `record`, for instance a list, takes the attention of the patches to the text of every
        layer in order, (B, heads, h / patch_size, w / patch_size, L).
        ValueError: h or w that do not fit, no pooled text.
        """
        return self.body(*self.embed(x, t, cond), record)

    def embed(self, x: Tensor, t: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor, Tensor]:
        """What `body` gets: x, the time and the pooled text as one vector (B, width) after SiLU, which
        all layers share, and the tokens."""
        if cond.pooled is None:
            raise ValueError("the conditioning has no pooled text; an MMDiT needs (B, pooled_dim)")
        return x, F.silu(self.time_text_embed(t, cond.pooled.to(x.dtype))), cond.tokens

    def body(
        self, x: Tensor, embedding: Tensor, tokens: Tensor, record: AttentionRecorder | None = None
    ) -> Tensor:
        """All of the network after the embeddings: nearly all of its work."""
        patch = self.config.patch_size
        size = (x.shape[2] // patch, x.shape[3] // patch)
        text = self.context_embedder(tokens)
        x = self.pos_embed(x)
        maps: list[Tensor] | None = None if record is None else []
        for layer in self.transformer_blocks:
            x, text = layer(x, text, embedding, maps)
        if record is not None and maps is not None:
            for weights in maps:
                record.append(weights.unflatten(2, size))
        scale, shift = self.norm_out(embedding)
        x = self.proj_out(modulated(norm(x), shift, scale))
        x = x.unflatten(1, size).unflatten(-1, (patch, patch, -1))  # (B, h/p, w/p, p, p, C)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
