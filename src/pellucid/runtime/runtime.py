"""A model at work: its parts on the right device, with enough memory, in a number type that holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from pellucid import cascade, tiling
from pellucid.clip import TextOutput, TextTower
from pellucid.diffusion import Conditioning, Network
from pellucid.model import Model
from pellucid.progress import each, stage
from pellucid.runtime import devices
from pellucid.runtime.precision import Float32Fallback, dtype_of, finite
from pellucid.tiny_vae import TinyVAE
from pellucid.vae import VAE

TEXT_ROWS = 64  # rows that a text tower reads at once, which bounds the memory of a long prompt

Result = TypeVar("Result", bound=Tensor | tuple[Tensor | None, ...])


@dataclass
class Runtime:
    """A model at work, for as long as a run takes.

    Each part is brought to `device` when its turn comes, and the others make room if memory is
    short. A part whose results are not finite in half precision runs again in float32. `warnings`
    collects what a run did differently from what was asked.
    """

    model: Model
    warnings: list[str] = field(default_factory=list)
    device: torch.device = field(init=False)
    """Where the model works: the device that any of its parts is on, the CPU if all are there. Parts
    that had to make room for others are on the CPU in the meantime."""

    def __post_init__(self) -> None:
        places = [devices.device_of(part) for part in self.parts]
        self.device = next((place for place in places if place != devices.HOME), devices.HOME)

    @property
    def parts(self) -> list[nn.Module]:
        """The networks of the model."""
        m = self.model
        parts = (m.backbone, m.vae, m.text, m.text_2, m.vision, m.tiny_vae, m.second_stage)
        return [part for part in parts if part is not None]

    @property
    def dtype(self) -> torch.dtype:
        """The number type of the backbone, and so of the text's vectors."""
        return dtype_of(self.model.backbone)

    @property
    def latent_dtype(self) -> torch.dtype:
        """The number type of the latents: at least float32, as rounding adds up from step to step."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def network(self) -> Network:
        """The backbone on its device; it changes to float32 if half precision is not enough."""
        network = Float32Fallback(self.model.backbone, "the network", self.warnings)

        def call(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
            self._bring(self.model.backbone)  # between two steps a preview may have its turn
            return network(x, t, cond)

        return call

    def encode_text(
        self, tower: TextTower, ids: Tensor, layer: int, final_norm: bool
    ) -> TextOutput:
        """What a text tower makes of rows of tokens (N, L).

        layer, final_norm: as in `TextTower.forward`. Raises NotFinite.
        """

        def run() -> TextOutput:
            rows = ids.to(self.device).split(TEXT_ROWS)
            parts = [tower(part, layer, final_norm) for part in each("encoding the text", rows)]
            hidden, pooled, projected = zip(*parts, strict=True)
            joined = None if projected[0] is None else torch.cat(projected)
            return TextOutput(torch.cat(hidden), torch.cat(pooled), joined)

        self._bring(tower)
        name = "the text tower"
        if self.model.text_2 is not None:
            name = f"the {'second' if tower is self.model.text_2 else 'first'} text tower"
        return self._finite(name, tower, run)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> scaled latents (B, C, h, w). Raises NotFinite."""
        vae = self.model.vae
        height, width = pixels.shape[2:]
        self._bring(vae, vae.working_bytes(width, height) // 4)
        tile_size = self.tile_size(vae, width, height)
        with stage("encoding the picture"):
            latents = self._finite(
                "the encoder",
                vae,
                lambda: vae.to_latents(pixels.to(self.device, dtype_of(vae)), tile_size=tile_size),
            )
        return latents.to(self.latent_dtype)

    def decode(self, decoder: VAE | TinyVAE, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) -> pixels (B, 3, H, W), by one of the model's decoders.

        Raises NotFinite, which holds the latents.
        """
        height, width = (side * decoder.config.downsample for side in latents.shape[2:])

        def run() -> Tensor:
            z = latents.to(self.device, dtype_of(decoder))
            if isinstance(decoder, VAE):
                return decoder.to_pixels(z, self.tile_size(decoder, width, height))
            return decoder.to_pixels(z)

        # In tiles, a quarter is enough.
        work = decoder.working_bytes(width, height) // 4 if isinstance(decoder, VAE) else 0
        self._bring(decoder, work)
        with stage("decoding the picture"):
            return self._finite("the decoder", decoder, run, latents)

    def enlarge(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Pixels (B, 3, h, w) in [-1, 1] -> (B, 3, H, W), by the model's second stage.

        noise: (B, 3, H, W), where it begins. Raises NotFinite; ValueError if the model has none.
        """
        second = self.model.second_stage
        if second is None:
            raise ValueError(f"{self.model.name} has no second stage")

        def run() -> Tensor:
            *_, last = cascade.sample(second, pixels.to(self.device), noise.to(self.device))
            return last.large

        self._bring(second)
        with stage("enlarging the picture"):
            return self._finite("the upscaler", second, run)

    def tile_size(self, vae: VAE, width: int, height: int) -> int | None:
        """The positions in a tile where a whole picture would not fit in memory; None where it does,
        and where the free memory is not known."""
        free = devices.free_memory(self.device)
        if free is None or vae.working_bytes(width, height) <= free:
            return None
        return tiling.TILE_SIZE

    def _bring(self, part: nn.Module, work: int = 0) -> None:
        devices.bring(part, self.parts, self.device, work)

    def _finite(
        self, name: str, part: nn.Module, run: Callable[[], Result], latents: Tensor | None = None
    ) -> Result:
        result, warning = finite(name, part, run, latents)
        if warning is not None:
            self.warnings.append(warning)
        return result
