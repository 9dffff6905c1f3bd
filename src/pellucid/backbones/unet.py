"""The U-Net: predicts the noise in a latent from the latent, the timestep and the text.

The network of latent diffusion (Rombach et al. 2022, arXiv:2112.10752), in the variants of Stable
Diffusion and SDXL (Podell et al. 2023, arXiv:2307.01952). Going down, each level halves the size;
going up, each residual block also sees what the one of its size saw on the way down. The
parameters have the names that diffusers gives them (UNet2DConditionModel).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid.nn import (
    AttentionRecorder,
    Downsample,
    ResidualBlock,
    SpatialTransformer,
    TimestepEmbedding,
    Upsample,
    sinusoid,
)

if TYPE_CHECKING:
    from pellucid.diffusion import Conditioning


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a U-Net. `transformer_layers` and `heads` are per level, from the largest."""

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    transformer_layers: tuple[int, ...] = (1, 1, 1, 0)  # 0: no attention at this level
    mid_transformer_layers: int = 1
    heads: tuple[int, ...] = (8, 8, 8, 8)
    cross_attention_dim: int = 768
    use_linear_projection: bool = False
    norm_groups: int = 32
    norm_eps: float = 1e-5
    pooled_dim: int = 0  # width of the pooled text that is added to the time; 0: none
    size_conditions: bool = False  # SDXL's size_count numbers, appended to the pooled text
    size_count: int = 6  # the refiner has 5: its last, an aesthetic score, replaces the target
    map_channels: int = 0  # channels that an MLP makes from the pooled text, appended to the input
    map_size: int = 8
    map_width: int = 0  # hidden width of that MLP; 0: the width of the time embedding
    film: bool = False  # time and pooled text also scale the channels of every residual block
    # Patches of patch_size x patch_size positions become channels before the first convolution, and
    # positions again after the last (Hoogeboom et al. 2023, arXiv:2301.11093, section 3.2).
    patch_size: int = 1

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        for name in ("transformer_layers", "heads"):
            if len(getattr(self, name)) != levels:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries; block_out_channels has "
                    f"{levels} levels and each needs one"
                )
        if self.patch_size < 1:
            raise ValueError(f"patch_size must be at least 1, got {self.patch_size}")
        if self.pooled_dim == 0 and (self.size_conditions or self.map_channels > 0):
            raise ValueError(
                "pooled_dim is 0; size_conditions and map_channels need the pooled text's width"
            )


SD15 = UNetConfig()
SD21 = UNetConfig(heads=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True)
SDXL = UNetConfig(
    block_out_channels=(320, 640, 1280),
    transformer_layers=(0, 2, 10),
    mid_transformer_layers=10,
    heads=(5, 10, 20),
    cross_attention_dim=2048,
    use_linear_projection=True,
    pooled_dim=1280,
    size_conditions=True,
)

SIZE_WIDTH = 256  # of the sinusoid of each of SDXL's size_count numbers


class UNetLevel(nn.Module):
    """The residual blocks of one level, each with a transformer behind it if `depth` > 0.

    `widths_in` are the channels that come into each residual block.
    """

    def __init__(
        self, config: UNetConfig, level: int, widths_in: list[int], depth: int, transformers: int
    ) -> None:
        super().__init__()
        width = config.block_out_channels[level]
        self.resnets = nn.ModuleList(
            ResidualBlock(
                width_in,
                width,
                4 * config.block_out_channels[0],
                config.norm_groups,
                config.norm_eps,
                config.film,
            )
            for width_in in widths_in
        )
        self.attentions = nn.ModuleList(
            SpatialTransformer(
                width,
                config.cross_attention_dim,
                config.heads[level],
                depth,
                config.norm_groups,
                config.use_linear_projection,
            )
            for _ in range(transformers if depth > 0 else 0)
        )


class DownLevel(UNetLevel):
    """One level on the way down; gives the output of every layer, for the way up."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        width, layers = config.block_out_channels[level], config.layers_per_block
        before = config.block_out_channels[max(level - 1, 0)]
        depth = config.transformer_layers[level]
        super().__init__(config, level, [before] + [width] * (layers - 1), depth, layers)
        last = level == len(config.block_out_channels) - 1
        self.downsamplers = nn.ModuleList([] if last else [Downsample(width)])

    def forward(
        self, x: Tensor, time: Tensor, tokens: Tensor, record: AttentionRecorder | None
    ) -> list[Tensor]:
        outputs = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if len(self.attentions) > 0:
                x = self.attentions[i](x, tokens, record)
            outputs.append(x)
        for downsampler in self.downsamplers:
            outputs.append(downsampler(x))
        return outputs


class MidLevel(UNetLevel):
    """The bottom: residual block, transformer, residual block."""

    def __init__(self, config: UNetConfig) -> None:
        width = config.block_out_channels[-1]
        super().__init__(config, -1, [width, width], config.mid_transformer_layers, 1)

    def forward(
        self, x: Tensor, time: Tensor, tokens: Tensor, record: AttentionRecorder | None
    ) -> Tensor:
        x = self.resnets[0](x, time)
        for transformer in self.attentions:
            x = transformer(x, tokens, record)
        return self.resnets[1](x, time)


class UpLevel(UNetLevel):
    """One level on the way up; each residual block takes one of the outputs kept going down."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        widths, layers = config.block_out_channels, config.layers_per_block
        width = widths[level]
        coming = [widths[min(level + 1, len(widths) - 1)]] + [width] * layers
        kept = [width] * layers + [widths[max(level - 1, 0)]]
        widths_in = [a + b for a, b in zip(coming, kept, strict=True)]
        super().__init__(config, level, widths_in, config.transformer_layers[level], layers + 1)
        self.upsamplers = nn.ModuleList([] if level == 0 else [Upsample(width)])

    def forward(
        self,
        x: Tensor,
        kept: list[Tensor],
        time: Tensor,
        tokens: Tensor,
        record: AttentionRecorder | None,
    ) -> Tensor:
        """Pops the skip connections that it needs from `kept`."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, kept.pop()], dim=1), time)
            if len(self.attentions) > 0:
                x = self.attentions[i](x, tokens, record)
        for upsampler in self.upsamplers:
            # The size of the next level, which is odd at times, so that any size of x will do.
            x = upsampler(x, (kept[-1].shape[2], kept[-1].shape[3]))
        return x


class UNet(nn.Module):
    """The complete U-Net."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        time_width = 4 * widths[0]
        patch = config.patch_size**2
        self.conv_in = nn.Conv2d(
            config.in_channels * patch + config.map_channels, widths[0], 3, padding=1
        )
        self.time_embedding = TimestepEmbedding(widths[0], time_width)
        if config.pooled_dim > 0:
            sizes = config.size_count * SIZE_WIDTH if config.size_conditions else 0
            self.add_embedding = TimestepEmbedding(config.pooled_dim + sizes, time_width)
        if config.map_channels > 0:
            map_width = config.map_width or time_width
            self.map_embedding = nn.Sequential(
                nn.Linear(config.pooled_dim, map_width),
                nn.SiLU(),
                nn.Linear(map_width, config.map_channels * config.map_size**2),
            )
        self.down_blocks = nn.ModuleList(DownLevel(config, i) for i in range(len(widths)))
        self.mid_block = MidLevel(config)
        self.up_blocks = nn.ModuleList(UpLevel(config, i) for i in reversed(range(len(widths))))
        self.conv_norm_out = nn.GroupNorm(config.norm_groups, widths[0], config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels * patch, 3, padding=1)

    def forward(
        self, x: Tensor, t: Tensor, cond: Conditioning, record: AttentionRecorder | None = None
    ) -> Tensor:
        """What the network predicts (noise, or as it was trained), (B, out_channels, h, w).

        x (B, in_channels, h, w), h and w multiples of patch_size; t (B,), from 0 to 1000, may be
        fractional; cond.tokens (B, L, cross_attention_dim); cond.pooled (B, pooled_dim) and
        cond.sizes (B, size_count) where the config asks for them, ValueError if they are missing.
        `record`, for instance a
        list, takes the attention to the text of every transformer block in order,
        (B, heads, h', w', L).
        """
        return self.body(*self.embed(x, t, cond), record)

    def embed(self, x: Tensor, t: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor, Tensor]:
        """What `body` gets: x, to which the map of the text is appended where there is one; the time,
        (B, 4 * block_out_channels[0]), after SiLU, which all blocks share; the tokens."""
        time = F.silu(self.embed_time(t, cond, x.dtype))
        if self.config.patch_size > 1:
            x = F.pixel_unshuffle(x, self.config.patch_size)
        if self.config.map_channels > 0:
            x = torch.cat([x, self.draw_map(x, cond)], dim=1)
        return x, time, cond.tokens

    def body(
        self, x: Tensor, time: Tensor, tokens: Tensor, record: AttentionRecorder | None = None
    ) -> Tensor:
        """All of the network after the embeddings: nearly all of its work."""
        x = self.conv_in(x)
        kept = [x]
        for down in self.down_blocks:
            kept += down(kept[-1], time, tokens, record)
        x = self.mid_block(kept[-1], time, tokens, record)
        for up in self.up_blocks:
            x = up(x, kept, time, tokens, record)
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        return F.pixel_shuffle(x, self.config.patch_size) if self.config.patch_size > 1 else x

    def embed_time(self, t: Tensor, cond: Conditioning, dtype: torch.dtype) -> Tensor:
        """The time, and with it the pooled text and the sizes: (B, 4 * block_out_channels[0])."""
        time = self.time_embedding(sinusoid(t, self.config.block_out_channels[0]).to(dtype))
        return time + self.embed_text(cond, dtype) if self.config.pooled_dim > 0 else time

    def embed_text(self, cond: Conditioning, dtype: torch.dtype) -> Tensor:
        """What the pooled text and the sizes add to the time: (B, 4 * block_out_channels[0])."""
        extra = pooled_of(cond)
        if self.config.size_conditions:
            if cond.sizes is None or cond.sizes.shape[-1] != self.config.size_count:
                has = "no sizes" if cond.sizes is None else f"{cond.sizes.shape[-1]} sizes"
                last = "target height and width" if self.config.size_count == 6 else "score"
                raise ValueError(
                    f"the conditioning has {has}; this U-Net needs (B, "
                    f"{self.config.size_count}): original height and width, top and left of "
                    f"the crop, {last}"
                )
            waves = sinusoid(cond.sizes.flatten(), SIZE_WIDTH).view(len(cond.sizes), -1)
            extra = torch.cat([extra, waves.to(extra.dtype)], dim=-1)
        return self.add_embedding(extra.to(dtype))

    def draw_map(self, x: Tensor, cond: Conditioning) -> Tensor:
        """The text as a map that is appended to x: (B, map_channels, h, w)."""
        drawn = self.map_embedding(pooled_of(cond).to(x.dtype))
        drawn = drawn.unflatten(1, (self.config.map_channels, self.config.map_size, -1))
        if drawn.shape[2:] != x.shape[2:]:
            drawn = F.interpolate(drawn, size=x.shape[2:], mode="bilinear", align_corners=False)
        return drawn


def pooled_of(cond: Conditioning) -> Tensor:
    """The pooled text (B, pooled_dim); ValueError if there is none."""
    if cond.pooled is None:
        raise ValueError("the conditioning has no pooled text; this U-Net needs (B, pooled_dim)")
    return cond.pooled


@torch.no_grad()
def init_for_training(unet: UNet) -> None:
    """Start every residual branch, and the whole output, at zero.

    So each block passes its input on at first, and learns what to add ("Diffusion models beat
    GANs", Dhariwal & Nichol 2021, and DDPM's own code before it). A branch has one such
    layer, its last; a second zero inside it would keep gradients out for a step.
    """
    layers: list[nn.Module] = [unet.conv_out]
    layers += [m.conv2 for m in unet.modules() if isinstance(m, ResidualBlock)]
    layers += [m.proj_out for m in unet.modules() if isinstance(m, SpatialTransformer)]
    layers += [m for name, m in unet.named_modules() if name.endswith("time_scale_proj")]
    for layer in layers:
        for parameter in layer.parameters():
            parameter.zero_()
