"""What every metric works with: the model, the art, a judge, and pictures of prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pellucid.data.emoji import EmojiArt
from pellucid.evaluate.classifier import Classifier
from pellucid.images.pixels import to_tensor
from pellucid.model import Model
from pellucid.pipeline import Request, generate
from pellucid.progress import each


@dataclass(frozen=True)
class Prompt:
    """One line of ``prompts.tsv``."""

    kind: str
    text: str
    concept: str


def read_prompts(kind: str) -> list[Prompt]:
    """The prompts of a set: "common" or "everyday"."""
    text = resources.files("pellucid.evaluate").joinpath("prompts.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines() if line and line[0] != "#"]
    return [Prompt(*row) for row in rows if row[0] == kind]


@dataclass(frozen=True)
class Evaluation:
    """A model, the art that it was trained on, and a classifier that judges its pictures."""

    model: Model
    art: EmojiArt
    classifier: Classifier

    @cached_property
    def numbers(self) -> dict[str, int]:
        """First name of a concept -> its number."""
        return {concept.names[0]: i for i, concept in enumerate(self.art.concepts)}

    def pictures(self, prompts: Iterable[str], seed: int = 0, **fields: Any) -> list[Image.Image]:
        """One picture for each prompt; prompt i has the seed `seed + i`. fields: of a `Request`."""
        drawn = []
        for i, prompt in enumerate(each("drawing what is measured", list(prompts))):
            *_, last = generate(self.model, Request(prompt=prompt, seed=seed + i, **fields))
            assert last.images is not None
            drawn.append(last.images[0])
        return drawn

    def pixels(self, prompts: Iterable[str], seed: int = 0) -> Tensor:
        """The same as (B, 3, size, size) in [-1, 1], at the size of the art."""
        return self.stack(self.pictures(prompts, seed))

    def stack(self, drawn: Iterable[Image.Image]) -> Tensor:
        """Pictures as (B, 3, size, size) in [-1, 1], at the size of the art."""
        size = self.art.size
        tensors = [to_tensor(picture) for picture in drawn]
        return torch.stack(
            [
                t if t.shape[-1] == size else F.interpolate(t[None], size=size, mode="area")[0]
                for t in tensors
            ]
        )

    @torch.no_grad()
    def things(self, pixels: Tensor) -> list[int]:
        """The number of the concept that the judge names in each picture."""
        return self.classifier(pixels)[0].argmax(1).tolist()

    @torch.no_grad()
    def styles(self, pixels: Tensor) -> list[int]:
        """The number of the style that the judge names in each picture."""
        return self.classifier(pixels)[1].argmax(1).tolist()
