"""Convolutions over few places are trained as PyTorch's own are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pellucid.nn import Downsample, ResidualBlock
from pellucid.train import small_pictures


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def slopes(block: nn.Module, x: Tensor, half: bool) -> list[Tensor]:
    """The output, and the gradients of the input and of all parameters."""
    x = x.clone().requires_grad_()
    block.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = block(x)
    (out.float() * noise(*out.shape)).sum().backward()
    found = [out.detach(), x.grad, *(parameter.grad for parameter in block.parameters())]
    return [each.float().clone() for each in found if each is not None]


@pytest.mark.parametrize("side", [4, 8])
@pytest.mark.parametrize("half", [True, False])
def test_gradients(side: int, half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(32, 64, 0, 8, 1e-5).to(memory_format=torch.channels_last)
    x = noise(3, 32, side, side)
    exact, own = slopes(block, x, half=False), slopes(block, x, half)
    small_pictures.prepare(block)
    calls: list[torch.Size] = []
    whole = small_pictures._surroundings
    monkeypatch.setattr(
        small_pictures, "_surroundings", lambda x: (calls.append(x.shape), whole(x))[1]
    )
    for found, expected, before in zip(slopes(block, x, half), exact, own, strict=True):
        error, usual = (float((each - expected).norm()) for each in (found, before))
        assert error <= 1.5 * usual + 1e-5 * float(expected.norm())
    assert len(calls) == (2 if half and side == 4 else 0)


def test_parameters_stay_and_others_are_left() -> None:
    network = nn.Sequential(ResidualBlock(32, 32, 0, 8, 1e-5), Downsample(32), nn.Conv2d(32, 3, 1))
    before = dict(network.named_parameters())
    small_pictures.prepare(network)
    assert dict(network.named_parameters()) == before
    kinds = [type(layer) for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert kinds == [small_pictures.Conv2d] * 2 + [nn.Conv2d] * 2
