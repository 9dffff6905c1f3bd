"""The autoencoder: pixels <-> latents, which are small enough to diffuse on.

"Auto-encoding variational Bayes" (Kingma & Welling 2014, arXiv:1312.6114); the network is
that of latent diffusion (Rombach et al. 2022, arXiv:2112.10752). Its parameters have the names that
diffusers gives them (AutoencoderKL).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid import tiling
from pellucid.nn import Downsample, PictureAttention, ResidualBlock, Upsample
from pellucid.progress import each, stage


@dataclass(frozen=True)
class VAEConfig:
    """The shape of an autoencoder, and the scale of its latents.

    Diffusion sees ``(z - shift_factor) * scaling_factor``, which has about unit variance.
    """

    in_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    use_quant_conv: bool = True
    patch_size: int = 1  # patches of pixels become channels before the first convolution
    mid_attention: bool = True
    shortcut: bool = False  # a linear code of patches runs parallel to both networks
    # Latents along a side that the linear decoder reads for one patch, an odd number; with more than
    # 1 neighbouring patches overlap, and their edges do not show.
    shortcut_kernel: int = 1
    # Steps across the edges of patches up to this much, of pixels in [-1, 1], are smoothed (`deblock`).
    deblock: float = 0.0

    def __post_init__(self) -> None:
        if self.shortcut_kernel % 2 == 0:
            raise ValueError(f"shortcut_kernel must be an odd number, got {self.shortcut_kernel}")
        if self.deblock < 0:
            raise ValueError(f"deblock must not be negative, got {self.deblock:g}")

    @property
    def downsample(self) -> int:
        """Pixels per latent, along one side."""
        return self.patch_size * 2 ** (len(self.block_out_channels) - 1)


SD_VAE = VAEConfig()
SDXL_VAE = VAEConfig(scaling_factor=0.13025)

NORM_EPS = 1e-6


class Posterior:
    """A normal distribution for every latent; `mean` and `logvar` are (B, C, h, w)."""

    def __init__(self, mean: Tensor, logvar: Tensor) -> None:
        self.mean = mean
        self.logvar = logvar.clamp(-30, 20)  # so that neither exp below overflows

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """mean + deviation * eps, through which gradients flow (Kingma & Welling, section 2.4).

        The noise is drawn where the generator lives, so a seed means the same on any device.
        """
        device = self.mean.device if generator is None else generator.device
        eps = torch.randn(
            self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype
        )
        return self.mean + torch.exp(0.5 * self.logvar) * eps.to(self.mean.device)

    def mode(self) -> Tensor:
        """The likeliest latents, (B, C, h, w)."""
        return self.mean

    def kl(self) -> Tensor:
        """KL divergence from the unit normal in nats, summed over latents: (B,).

        Kingma & Welling 2014, appendix B.
        """
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).sum(dim=(1, 2, 3))


def deblock(pixels: Tensor, period: int, limit: float) -> Tensor:
    """Halve the small steps across a grid of `period` pixels, in (B, C, H, W).

    Latents that a network has drawn do not quite fit to each other, and their patches show. As the
    deblocking filters of video codecs do (List et al. 2003, "Adaptive deblocking filter"), a step that
    differs from the mean of its neighbours by less than `limit` is taken for such an error, a larger one
    for an outline.
    """
    for side in (-1, -2):
        x = pixels.transpose(side, -1)
        steps = x.diff(dim=-1)
        edges = torch.arange(period - 1, steps.shape[-1], period, device=x.device)
        excess = steps[..., edges] - (steps[..., edges - 1] + steps[..., edges + 1]) / 2
        moved = excess.masked_fill(excess.abs() >= limit, 0) / 4
        x = x.index_add(-1, edges, moved).index_add(-1, edges + 1, -moved)
        pixels = x.transpose(side, -1)
    return pixels


class MidBlock(nn.Module):
    """Two residual blocks with attention between them: (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(channels, channels, 0, groups, NORM_EPS) for _ in range(2)
        )
        if attention:
            self.attentions = nn.ModuleList([PictureAttention(channels, groups, NORM_EPS)])
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        if self.attention:
            x = self.attentions[0](x)
        return self.resnets[1](x)


class DownBlock(nn.Module):
    """Residual blocks, then half the size unless `last`."""

    def __init__(
        self, channels_in: int, channels: int, layers: int, groups: int, last: bool
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(channels_in if i == 0 else channels, channels, 0, groups, NORM_EPS)
            for i in range(layers)
        )
        self.downsamplers = nn.ModuleList([] if last else [Downsample(channels, symmetric=False)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """Residual blocks, then twice the size unless `last`."""

    def __init__(
        self, channels_in: int, channels: int, layers: int, groups: int, last: bool
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(channels_in if i == 0 else channels, channels, 0, groups, NORM_EPS)
            for i in range(layers)
        )
        self.upsamplers = nn.ModuleList([] if last else [Upsample(channels)])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for upsampler in self.upsamplers:
            x = upsampler(x, (2 * x.shape[2], 2 * x.shape[3]))
        return x


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) -> mean and log variance (B, 2 C, H / f, W / f)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_groups
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(config.in_channels * config.patch_size**2, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(
                widths[max(i - 1, 0)],
                width,
                config.layers_per_block,
                groups,
                last=i == len(widths) - 1,
            )
            for i, width in enumerate(widths)
        )
        self.mid_block = MidBlock(widths[-1], groups, config.mid_attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.pixel_unshuffle(pixels, self.patch_size) if self.patch_size > 1 else pixels
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.end(x)

    def end(self, x: Tensor) -> Tensor:
        """What comes after the last level, where the picture is small and attention sees it all."""
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))

    def tiled(self, pixels: Tensor, tile_size: int) -> Tensor:
        """As `forward`, with less memory and more time; without gradients."""
        pixels = F.pixel_unshuffle(pixels, self.patch_size) if self.patch_size > 1 else pixels
        x = tiling.compute(tiling.convolution(tiling.split(pixels, tile_size), self.conv_in))
        blocks = cast("Iterable[Any]", self.down_blocks)
        layers = [layer for block in blocks for layer in (*block.resnets, *block.downsamplers)]
        for layer in each("layer", layers):
            halved = isinstance(layer, Downsample)
            x = tiling.compute((tiling.downsample if halved else tiling.residual)(x, layer))
        return self.end(tiling.join(x))


class Decoder(nn.Module):
    """Latents (B, C, h, w) -> pixels (B, 3, h * f, w * f)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_groups
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups, config.mid_attention)
        self.up_blocks = nn.ModuleList(
            UpBlock(
                widths[max(i - 1, 0)],
                width,
                config.layers_per_block + 1,
                groups,
                last=i == len(widths) - 1,
            )
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], NORM_EPS)
        self.conv_out = nn.Conv2d(
            widths[-1], config.in_channels * config.patch_size**2, 3, padding=1
        )

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        return F.pixel_shuffle(x, self.patch_size) if self.patch_size > 1 else x

    def tiled(self, z: Tensor, tile_size: int) -> Tensor:
        """As `forward`, with less memory and more time; without gradients."""
        x = tiling.split(self.mid_block(self.conv_in(z)), tile_size)
        blocks = cast("Iterable[Any]", self.up_blocks)
        layers = [layer for block in blocks for layer in (*block.resnets, *block.upsamplers)]
        largest = [layer for layer in layers if isinstance(layer, Upsample)][-1:]
        with stage("layer", len(layers) + 1) as now:
            for layer in layers:
                doubled = isinstance(layer, Upsample)
                x = (tiling.upsample if doubled else tiling.residual)(x, layer)
                if layer not in largest:  # which is not held whole
                    x = tiling.compute(x)
                now.done += 1
            pixels = tiling.join(
                tiling.convolution(tiling.norm_silu(x, self.conv_norm_out), self.conv_out)
            )
        return F.pixel_shuffle(pixels, self.patch_size) if self.patch_size > 1 else pixels


class VAE(nn.Module):
    """The autoencoder whole. Pixels are (B, 3, H, W) in [-1, 1]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        latents = config.latent_channels
        if config.use_quant_conv:
            self.quant_conv = nn.Conv2d(2 * latents, 2 * latents, 1)
            self.post_quant_conv = nn.Conv2d(latents, latents, 1)
        if config.shortcut:
            f = config.downsample
            self.encoder_shortcut = nn.Conv2d(config.in_channels, latents, f, stride=f)
            k = config.shortcut_kernel
            self.decoder_shortcut = nn.Conv2d(
                latents, config.in_channels * f * f, k, padding=k // 2
            )

    def encode(self, pixels: Tensor, tile_size: int | None = None) -> Posterior:
        """The distribution of latents, (B, latent_channels, H / f, W / f), not scaled.

        tile_size: with a number, the pictures are computed one after the other, each in tiles of
        this many positions (`tiling.TILE_SIZE` is a good one): the same result with less memory.
        ValueError if `pixels` is not (B, in_channels, H, W) with H and W multiples of
        ``config.downsample``.
        """
        config = self.config
        if pixels.ndim != 4 or pixels.shape[1] != config.in_channels:
            raise ValueError(
                f"pixels have the shape {tuple(pixels.shape)}; "
                f"(B, {config.in_channels}, H, W) is needed"
            )
        if pixels.shape[2] % config.downsample or pixels.shape[3] % config.downsample:
            raise ValueError(
                f"pixels are {pixels.shape[3]} wide and {pixels.shape[2]} high; "
                f"both must be multiples of {config.downsample}"
            )
        if tile_size is None:
            moments = self.encoder(pixels)
        else:
            with torch.no_grad():
                parts = [self.encoder.tiled(one, tile_size) for one in pixels.split(1)]
            moments = torch.cat(parts)
        if config.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, logvar = moments.chunk(2, dim=1)
        if config.shortcut:
            mean = mean + self.encoder_shortcut(pixels)
        return Posterior(mean, logvar)

    def decode(self, z: Tensor, tile_size: int | None = None) -> Tensor:
        """Latents as `encode` makes them, not scaled, -> pixels, about in [-1, 1].

        tile_size: as in `encode`.
        """
        codes = self.post_quant_conv(z) if self.config.use_quant_conv else z
        if tile_size is None:
            pixels = self.decoder(codes)
        else:
            with torch.no_grad():
                parts = [self.decoder.tiled(one, tile_size) for one in codes.split(1)]
            pixels = torch.cat(parts)
        if self.config.shortcut:
            linear = F.pixel_shuffle(self.decoder_shortcut(z), self.config.downsample)
            pixels = pixels + linear
        if self.config.deblock:
            pixels = deblock(pixels, self.config.downsample, self.config.deblock)
        return pixels

    def to_latents(
        self, pixels: Tensor, generator: torch.Generator | None = None, tile_size: int | None = None
    ) -> Tensor:
        """Pixels -> scaled latents for diffusion; the likeliest, or with a generator a sample."""
        posterior = self.encode(pixels, tile_size)
        z = posterior.mode() if generator is None else posterior.sample(generator)
        return (z - self.config.shift_factor) * self.config.scaling_factor

    def to_pixels(self, latents: Tensor, tile_size: int | None = None) -> Tensor:
        """Scaled latents -> pixels."""
        z = latents / self.config.scaling_factor + self.config.shift_factor
        return self.decode(z, tile_size)

    def working_bytes(self, width: int, height: int) -> int:
        """About what decoding or encoding a picture of so many pixels needs at its peak, whole.

        Four tensors of the size of the largest. Measured for SD_VAE on a CPU: 2.6 with weights in
        channels_last, 4.1 without; tiled 1.0, in 1.7 times the time.
        """
        config = self.config
        widths = config.block_out_channels
        # The channels that come into a level's first block on the way up, at the level's size.
        largest = max(
            max(here, below) / 4**level
            for level, (here, below) in enumerate(zip(widths, (*widths[1:], 0), strict=True))
        )
        positions = width * height / config.patch_size**2
        return round(4 * largest * positions * next(self.parameters()).element_size())

    @torch.no_grad()
    def set_shortcut(self, encode: Tensor, decode: Tensor, mean: Tensor) -> None:
        """Make this a linear code of patches, from which training can start.

        With patches p (n,), n = in_channels * f * f in the order of ``F.unfold``, the latents are
        ``encode @ (p - mean)`` and the pixels ``decode @ z + mean``; `encode` is
        (latent_channels, n), `decode` (n, latent_channels), `mean` (n,). The networks parallel to the
        shortcut start at zero, and the posterior with a small deviation, exp(-3).
        """
        config = self.config
        if not config.shortcut:
            raise ValueError(
                "this autoencoder has no shortcut to set; its config says shortcut=False"
            )
        n = config.in_channels * config.downsample**2
        shapes = ((config.latent_channels, n), (n, config.latent_channels), (n,))
        if (encode.shape, decode.shape, mean.shape) != shapes:
            raise ValueError(
                f"encode, decode and mean have the shapes {tuple(encode.shape)}, "
                f"{tuple(decode.shape)} and {tuple(mean.shape)}; {shapes} are needed"
            )
        assert self.encoder_shortcut.bias is not None and self.decoder_shortcut.bias is not None
        self.encoder_shortcut.weight.copy_(encode.view_as(self.encoder_shortcut.weight))
        self.encoder_shortcut.bias.copy_(-encode @ mean)
        middle = config.shortcut_kernel // 2
        self.decoder_shortcut.weight.zero_()
        self.decoder_shortcut.weight[:, :, middle, middle] = decode
        self.decoder_shortcut.bias.copy_(mean)
        for layer in (self.encoder.conv_out, self.decoder.conv_out):
            for parameter in layer.parameters():
                parameter.zero_()
        last = self.quant_conv if config.use_quant_conv else self.encoder.conv_out
        assert last.bias is not None
        last.bias.zero_()
        last.bias[config.latent_channels :] = -6.0


def psnr(decoded: Tensor, pixels: Tensor) -> float:
    """Mean over pictures of 10 log10(4 / MSE), `decoded` clipped to [-1, 1]. dB; inf if equal."""
    error = (decoded.clamp(-1, 1) - pixels).square().mean(dim=(1, 2, 3))
    return float((10 * torch.log10(4 / error)).mean())
