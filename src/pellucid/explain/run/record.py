"""The record of one run: everything between the words and the pixels, as data."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pellucid.diffusion import Conditioning, eps_from_x0
from pellucid.explain.word_space import WordSpace
from pellucid.images.data_url import to_data_url
from pellucid.request import ResolvedRequest
from pellucid.schedule import Level


@dataclass(frozen=True)
class Word:
    """One token of the prompt, as the text tower reads it."""

    text: str
    """The piece of the prompt that it stands for."""
    id: int
    weight: float
    place: int
    """Its column in the attention maps and its row in the conditioning, of its region."""
    word: int
    """The number of the word that it is a piece of, counted from 0."""
    whole: str
    """That word."""
    content: bool
    """Whether it means something: not an article, a preposition, a comma."""
    region: int = 0
    """The number of the region whose prompt it is in; 0 if the picture is drawn as a whole."""


@dataclass(frozen=True)
class Near:
    """A word of the prompt among other words: their cosines, the nearest first."""

    word: str
    others: tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False)
class NetworkCall:
    """One call of the network for one picture."""

    x: Tensor
    """Its input, the noisy latents, (C, h, w)."""
    t: float
    words: tuple[Word, ...]
    """Those of the prompt, which may change from step to step."""
    maps: tuple[Tensor, ...]
    """How much each position attends to each word, one tensor (heads, h', w', words + 1) float16 for
    each layer of cross-attention. The last column is the sum over the rest of the row: start, end
    and padding, and in joint attention (MMDiT) the other positions. The columns add up to 1. Empty
    where the network has no cross-attention."""
    seconds: float


@dataclass(frozen=True, eq=False)
class UpscalerCall:
    """One call of the second stage. Tensors are float32 on the CPU."""

    x: Tensor
    """The noisy residual, (3, H, W)."""
    t: float
    small: Tensor
    """The picture that is enlarged, (3, h, w) in [-1, 1]."""
    residual: Tensor
    """The estimate of the clean residual, (3, H, W)."""


@dataclass(frozen=True, eq=False)
class RecordedStep:
    """One step of the sampler. All tensors are (C, h, w), float32, on the CPU.

    Some samplers call the network more than once in a step; what is recorded is the last call:
    `level`, `x`, the three estimates and `maps` belong together.
    """

    level: Level
    """Where the network was called."""
    x: Tensor
    """Its input, the noisy latents."""
    x0: Tensor
    """The estimate of the clean latents after guidance."""
    cond: Tensor
    """The estimate with the text."""
    uncond: Tensor
    """The estimate without it; the same as `cond` where nothing was guided."""
    words: tuple[Word, ...]
    """Those of the prompt at this step."""
    maps: tuple[Tensor, ...]
    """As in `NetworkCall`."""
    after: Tensor
    """The latents at the end of the step."""
    level_after: Level
    evaluations: int
    """Calls of the network in this step."""
    seconds: float
    """The time of those calls."""

    @property
    def eps_cond(self) -> Tensor:
        """The noise in x by the estimate with the text: (x - alpha x0) / sigma."""
        return eps_from_x0(self.x, self.cond, self.level)

    @property
    def eps_uncond(self) -> Tensor:
        """The noise in x by the estimate without the text."""
        return eps_from_x0(self.x, self.uncond, self.level)

    @property
    def difference(self) -> Tensor:
        """What the text changes in the predicted noise: -alpha / sigma (cond - uncond).

        Zero at pure noise (alpha = 0): there x is all noise, for any picture.
        """
        return self.eps_cond - self.eps_uncond


@dataclass(frozen=True, eq=False)
class Explanation:
    """The run that made one picture. Tensors are float32 on the CPU unless said otherwise."""

    model: str
    prediction: str
    """What the network predicts, one of `diffusion.PREDICTIONS`."""
    request: ResolvedRequest
    """With every default filled in."""
    warnings: tuple[str, ...]
    text: Conditioning
    """The conditioning of the first call, a batch of 1, or of all regions."""
    near: tuple[Near, ...]
    """The words of the prompt that mean something, each compared with other words."""
    space: WordSpace | None
    """Those other words compared with each other; None if fewer than two were given."""
    start: Tensor
    """The noisy latents that the run began with, (C, h, w)."""
    steps: tuple[RecordedStep, ...]
    picture: Image.Image
    upscaling: tuple[UpscalerCall, ...]
    """The first enlargement by the second stage; empty without one."""
    seconds: dict[str, float]
    """Time of the text towers, the network, the decoder, the second stage if the model has one, and the
    rest (sampler, guidance, recording)."""

    def texts(self) -> list[tuple[Word, ...]]:
        """The different texts of the prompt in order of the steps; one, if it does not change."""
        return list(dict.fromkeys(step.words for step in self.steps))

    @property
    def places(self) -> tuple[int, int]:
        """Height and width of the finished latents."""
        height, width = self.steps[-1].after.shape[1:]
        return height, width

    def trails(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The trajectories of x, (steps + 1, D), and of the estimate of x0, (steps, D).

        Latents of another height and width than `size`, as in the first of two passes, are resized.
        """

        def flat(latents: Sequence[Tensor]) -> Tensor:
            same = [x if x.shape[1:] == size else F.interpolate(x[None], size)[0] for x in latents]
            return torch.stack(same).flatten(1)

        return flat([self.start, *(step.after for step in self.steps)]), flat(
            [step.x0 for step in self.steps]
        )

    def record(self) -> dict[str, Any]:
        """The whole record as plain JSON values.

        A tensor is {"shape", "dtype", "data"}: `data` is base64 of its numbers, little-endian, the
        last index running fastest. The picture is a data: URL of a PNG. "texts" are the words of
        each text of the prompt, and a step's "text" is its index. "evaluations" counts network calls.
        """
        path_x, path_x0 = project(self.trails(self.places))[0]
        pooled = self.text.pooled
        texts = self.texts()
        return {
            "model": self.model,
            "prediction": self.prediction,
            "request": self.request.record(),
            "warnings": list(self.warnings),
            "texts": [[vars(word) for word in words] for words in texts],
            "text": {
                "tokens": as_json(self.text.tokens.flatten(0, 1)),
                "pooled": None if pooled is None else as_json(pooled[0]),
            },
            "near": [{"word": one.word, "others": [*map(list, one.others)]} for one in self.near],
            "space": None if self.space is None else self.space.model_dump(),
            "start": as_json(self.start),
            "steps": [
                {
                    "t": step.level.t,
                    "alpha": step.level.alpha,
                    "sigma": step.level.sigma,
                    "alpha_after": step.level_after.alpha,
                    "sigma_after": step.level_after.sigma,
                    "text": texts.index(step.words),
                    "evaluations": step.evaluations,
                    "seconds": step.seconds,
                    "maps": [as_json(weights) for weights in step.maps],
                }
                | {
                    name: as_json(getattr(step, name))
                    for name in ("x", "x0", "cond", "uncond", "eps_cond", "eps_uncond", "after")
                }
                for step in self.steps
            ],
            "upscaling": [
                {
                    "t": call.t,
                    "x": as_json(call.x),
                    "small": as_json(call.small),
                    "residual": as_json(call.residual),
                }
                for call in self.upscaling
            ],
            "path": {"x": path_x.tolist(), "x0": path_x0.tolist()},
            "seconds": dict(self.seconds),
            "picture": to_data_url(self.picture),
        }


def as_json(tensor: Tensor) -> dict[str, Any]:
    """A tensor as JSON values; see `Explanation.record`. bfloat16 becomes float32."""
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    array = np.ascontiguousarray(tensor.cpu().numpy())
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "data": base64.b64encode(data).decode(),
    }


def project(trails: Sequence[Tensor]) -> tuple[list[Tensor], tuple[float, float]]:
    """Trajectories of latents, each (N, D), projected on one plane: each (N, 2), and the fractions of
    the variance along its two axes.

    The plane is that of the first principal components of all points (Pearson 1901).
    """
    points = torch.cat(list(trails)).double()
    centre = points.mean(0)
    _, lengths, axes = torch.linalg.svd(points - centre, full_matrices=False)
    flat = (points - centre) @ axes[:2].T  # (N, 2), or (N, 1) if there is but one point
    flat = F.pad(flat, (0, 2 - flat.shape[1]))
    variance = lengths.square()
    shares = F.pad(variance, (0, 2))[:2] / variance.sum().clamp(min=1e-30)
    return list(flat.float().split([len(trail) for trail in trails])), (
        float(shares[0]),
        float(shares[1]),
    )
