"""A pool of pictures, encoded once: their latents and the vectors of their captions.

The autoencoder and CLIP do not change while the diffusion network learns.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pellucid.clip import CLIP
from pellucid.conditioning import encode_captions
from pellucid.data import Source
from pellucid.diffusion import Conditioning
from pellucid.tokenizer import Tokenizer
from pellucid.train import clip as train_clip
from pellucid.train import loop, token_loss
from pellucid.train import vae as train_vae
from pellucid.vae import VAE


class Pool(NamedTuple):
    """Latents, caption vectors and the boxes of things."""

    latents: Tensor  # (N, C, h, w) float16
    tokens: Tensor  # (N, L, D) float16
    pooled: Tensor  # (N, P) float16
    columns: Tensor  # (N, MOST, L) bool, the tokens that name a thing whose box is known
    boxes: Tensor  # (N, MOST, 4), that box
    empty_tokens: Tensor  # (1, L, D), of the empty caption
    empty_pooled: Tensor  # (1, P)

    @property
    def empty(self) -> Conditioning:
        return Conditioning(self.empty_tokens, self.empty_pooled)

    def to(self, device: torch.device) -> Pool:
        """The same on another device, where batches are then made."""
        return Pool(*(x.to(device) for x in self))

    def batch(self, index: Tensor, dropped: Tensor) -> tuple[Tensor, Conditioning]:
        """Latents (B, C, h, w) and conditioning, float32; `dropped` (B,) bool have no caption."""
        index, dropped = index.to(self.latents.device), dropped.to(self.latents.device)
        tokens = torch.where(dropped[:, None, None], self.empty_tokens, self.tokens[index].float())
        pooled = torch.where(dropped[:, None], self.empty_pooled, self.pooled[index].float())
        return self.latents[index].float(), Conditioning(tokens, pooled)

    def grounding(self, index: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
        """Columns (B, MOST, L) and boxes (B, MOST, 4) for `token_loss`; none for `dropped` ones."""
        index, dropped = index.to(self.latents.device), dropped.to(self.latents.device)
        return self.columns[index] & ~dropped[:, None, None], self.boxes[index]


class Encoders:
    """A trained autoencoder and CLIP, read from their files."""

    def __init__(self, vae: Path, clip: Path, device: torch.device) -> None:
        self.files = (vae, clip)
        self.vae: VAE = train_vae.trained(vae).to(device)
        self.clip: CLIP
        self.tokenizer: Tokenizer
        self.clip, self.tokenizer = train_clip.trained(clip)
        self.clip.to(device)

    @torch.no_grad()
    def text(self, captions: list[str]) -> Conditioning:
        """The vectors of captions, one row each."""
        return encode_captions(self.clip.text, self.tokenizer, captions, words=True)

    @torch.no_grad()
    def pool(self, source: Source, count: int, seed: int, held: bool = False) -> Pool:
        """The source's pool, encoded; on the CPU."""
        device = next(self.vae.parameters()).device
        latents, tokens, pooled, columns, boxes = [], [], [], [], []
        for batch in source.pool(count, seed, held=held):
            latents.append(self.vae.to_latents(batch.pixels.to(device)).half().cpu())
            cond = self.text(batch.captions)
            assert cond.pooled is not None
            tokens.append(cond.tokens.half().cpu())
            pooled.append(cond.pooled.half().cpu())
            for caption, phrases in zip(batch.captions, batch.phrases, strict=True):
                columns.append(token_loss.columns(self.tokenizer, caption, phrases))
                boxes.append(token_loss.boxes(phrases))
        empty = self.text([""]).to("cpu")
        assert empty.pooled is not None
        return Pool(
            torch.cat(latents),
            torch.cat(tokens),
            torch.cat(pooled),
            torch.stack(columns),
            torch.stack(boxes),
            empty.tokens,
            empty.pooled,
        )

    def cached_pool(self, path: Path, source: Source, count: int, seed: int, say: loop.Say) -> Pool:
        """The pool at `path` if it was made from the same parts, else a new one, saved there."""
        written = [str(file.stat().st_mtime_ns) for file in self.files]
        made_of = ["words and boxes", str(count), str(seed), source.identity, *written]
        if (state := loop.load_state(path)) and state["made_of"] == made_of:
            return Pool(*(state[name] for name in Pool._fields))
        say("encoding pictures and captions")
        pool = self.pool(source, count, seed)
        loop.save_state(path, pool._asdict() | {"made_of": made_of})
        return pool
