"""Super-resolution: bicubic and what it misses."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid import cascade, checkpoints
from pellucid.cascade import (
    SuperResolution,
    SuperResolutionConfig,
    enlarge,
    sample,
    to_large,
    to_residual,
)
from pellucid.folders import embedded
from pellucid.recipes import emoji
from pellucid.train import upscaler

SMALL = SuperResolutionConfig(block_out_channels=(16, 24), embedding=8)
RECIPE = replace(emoji.RECIPE, upscaler=SMALL)


@pytest.fixture
def network() -> SuperResolution:
    torch.manual_seed(0)
    return SuperResolution(SMALL).eval()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_an_untrained_network_that_starts_at_zero_gives_bicubic(network: SuperResolution) -> None:
    cascade.init_for_training(network)
    small = drawn(2, 3, 8, 12).clamp(-1, 1)
    *_, last = sample(network, small, drawn(2, 3, 32, 48), steps=3)
    assert torch.equal(last.large, enlarge(small, 4).clamp(-1, 1))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_network_that_knows_the_truth_gives_the_truth(steps: int) -> None:
    large = drawn(1, 3, 32, 32).clamp(-0.9, 0.9)
    small = drawn(1, 3, 8, 8, seed=1).clamp(-1, 1)

    class Oracle(SuperResolution):
        def forward(self, x: Tensor, t: Tensor, small: Tensor, noise: Tensor) -> Tensor:
            return to_residual(large, small, self.config)

    run = list(sample(Oracle(SMALL), small, drawn(1, 3, 32, 32, seed=2), steps))
    assert len(run) == steps
    torch.testing.assert_close(run[-1].large, large)


def test_residual_there_and_back() -> None:
    large, small = drawn(2, 3, 32, 40).clamp(-1, 1), drawn(2, 3, 8, 10, seed=1)
    there = to_residual(large, small, SMALL)
    torch.testing.assert_close(to_large(there, small, SMALL), large)


def test_any_size_and_factor() -> None:
    for factor, height, width in ((4, 7, 13), (2, 9, 5), (3, 8, 8)):
        net = SuperResolution(
            SuperResolutionConfig(factor=factor, block_out_channels=(16, 16, 16), embedding=8)
        )
        small = drawn(1, 3, height, width)
        *_, last = sample(net, small, drawn(1, 3, factor * height, factor * width), 1)
        assert last.large.shape == (1, 3, factor * height, factor * width)


def test_a_crop_is_as_the_whole_where_it_cannot_see_its_edge() -> None:
    torch.manual_seed(0)
    net = SuperResolution(SuperResolutionConfig(block_out_channels=(16,), embedding=8)).eval()
    x, small = drawn(1, 3, 96, 96), drawn(1, 3, 24, 24, seed=1)
    t, noise = torch.tensor([400.0]), torch.tensor([0.1])
    with torch.no_grad():
        whole = net(x, t, small, noise)
        part = net(x[..., 32:, 32:], t, small[..., 8:, 8:], noise)
    # Three blocks of two convolutions, and one before and one after: eight places.
    torch.testing.assert_close(part[..., 36:, 36:], whole[..., 68:, 68:], rtol=1e-4, atol=1e-5)


def test_a_picture_does_not_depend_on_its_batch(network: SuperResolution) -> None:
    small, eps = drawn(3, 3, 8, 8), drawn(3, 3, 32, 32, seed=1)
    with torch.no_grad():
        *_, all_three = sample(network, small, eps)
        *_, alone = sample(network, small[1:2], eps[1:2])
    torch.testing.assert_close(all_three.large[1:2], alone.large, rtol=1e-4, atol=1e-5)


def test_the_deviation_of_noise_on_the_small_picture_is_an_input(network: SuperResolution) -> None:
    small, eps = drawn(1, 3, 8, 8), drawn(1, 3, 32, 32, seed=1)
    *_, plain = sample(network, small, eps)
    *_, noisy = sample(network, small, eps, augment=0.2)
    assert not torch.allclose(plain.large, noisy.large)


def test_wrong_shapes_and_steps_are_refused(network: SuperResolution) -> None:
    small = drawn(1, 3, 8, 8)
    with pytest.raises(ValueError, match="noise must have the shape"):
        next(sample(network, small, drawn(1, 3, 16, 16)))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        next(sample(network, small, drawn(1, 3, 32, 32), steps=0))
    with pytest.raises(ValueError, match="augment must be at least 0"):
        next(sample(network, small, drawn(1, 3, 32, 32), augment=-0.1))


@pytest.mark.parametrize(
    "settings", [{"factor": 1}, {"block_out_channels": ()}, {"layers_per_block": 0}]
)
def test_configs_that_make_no_network_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must"):
        SuperResolutionConfig(**settings)


def test_the_loss_of_the_truth_is_zero_and_it_is_weighted_by_time() -> None:
    large, small = drawn(2, 3, 32, 32).clamp(-1, 1), drawn(2, 3, 8, 8, seed=1)
    u, none = torch.tensor([0.2, 0.9]), torch.zeros(2)
    eps, eps_small = drawn(2, 3, 32, 32, seed=2), drawn(2, 3, 8, 8, seed=3)

    def right(x: Tensor, t: Tensor, seen: Tensor, noise: Tensor) -> Tensor:
        return to_residual(large, seen, SMALL)

    def off(x: Tensor, t: Tensor, seen: Tensor, noise: Tensor) -> Tensor:
        return right(x, t, seen, noise) + 1

    noises = cascade.Noises(u, eps, none, eps_small)
    loss = cascade.training_loss(right, large, small, noises, SMALL)
    torch.testing.assert_close(loss, torch.zeros(2))
    loss = cascade.training_loss(off, large, small, noises, SMALL)
    torch.testing.assert_close(loss, 1 / (u.square() + 0.05))
    loss = cascade.training_loss(off, large, small, noises, SMALL, power=1)
    torch.testing.assert_close(loss, (u.square() + 0.05).rsqrt())
    with pytest.raises(ValueError, match="power must be 1 or 2, got 3"):
        upscaler.UpscalerOptions(power=3)


def test_sharpening_adds_the_finest_detail_and_nothing_to_flat_parts(
    network: SuperResolution,
) -> None:
    step = torch.zeros(1, 3, 8, 8)
    step[..., 4:] = 0.3
    sharp = cascade.sharpened(step, 1.0)
    edge = torch.tensor([0, 0, 0, -0.1, 0.4, 0.3, 0.3, 0.3])
    torch.testing.assert_close(sharp, edge.expand(1, 3, 8, 8))
    assert torch.equal(cascade.sharpened(step, 0.0), step)
    small, noise = drawn(1, 3, 8, 8).clamp(-1, 1), drawn(1, 3, 32, 32, seed=1)
    *_, soft = sample(network, small, noise)
    network.config = replace(SMALL, sharpen=1.0)
    *_, last = sample(network, small, noise)
    torch.testing.assert_close(last.large, cascade.sharpened(soft.large, 1.0))
    with pytest.raises(ValueError, match="sharpen must be at least 0, got -1"):
        SuperResolutionConfig(sharpen=-1)


def test_the_waves_repeat_with_the_grid() -> None:
    waves = cascade.grid_waves(torch.zeros(1, 3, 24, 16), 8)
    assert waves.shape == (1, 4, 24, 16)
    torch.testing.assert_close(waves[..., :8, :8], waves[..., 16:, 8:], atol=1e-5, rtol=0)


def write_pairs(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    large = rng.integers(0, 255, (6, 8, 1, 8, 1, 3), dtype=np.uint8)
    large = np.broadcast_to(large, (6, 8, 16, 8, 16, 3)).reshape(6, 128, 128, 3)
    small = large.reshape(6, 32, 4, 32, 4, 3).mean((2, 4)).astype(np.uint8)
    folder.mkdir()
    np.save(folder / "large.npy", large)
    np.save(folder / "small.npy", small)
    return folder


@pytest.mark.parametrize("adversarial", [0.0, 0.5])
def test_training_goes_on_where_it_was_killed(tmp_path: Path, adversarial: float) -> None:
    pairs = write_pairs(tmp_path / "pairs")

    def options(out: str, steps: int) -> upscaler.UpscalerOptions:
        return upscaler.UpscalerOptions(
            pairs=f"{pairs}:2",
            held=str(pairs),
            out=tmp_path / out,
            steps=steps,
            batch=2,
            crop=16,
            decay_from=1.0,
            save_every=2,
            resume=True,
            adversarial=adversarial,
            adversarial_from=1,
        )

    lines: list[str] = []
    path = upscaler.train(options("a", 4), RECIPE, lambda line, **_: lines.append(line))
    whole = upscaler.trained(path)
    assert any("sharpness" in line for line in lines)
    upscaler.train(options("b", 2), RECIPE)
    again = upscaler.trained(upscaler.train(options("b", 4), RECIPE))
    assert asdict(whole.config) == asdict(SMALL)
    for (name, one), two in zip(
        whole.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name


def test_training_starts_from_the_second_stage_of_a_model() -> None:
    shipped = checkpoints.load().second_stage
    assert shipped is not None
    config = replace(shipped.config, sharpen=0.3)
    network = upscaler.new_network(config, str(embedded()))
    assert network.config == config
    for one, two in zip(network.parameters(), shipped.parameters(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(ValueError, match="another shape"):
        upscaler.new_network(SMALL, str(embedded()))


def test_the_drawn_picture_has_the_gradient_of_the_last_step(network: SuperResolution) -> None:
    small, noise = drawn(2, 3, 8, 8).clamp(-1, 1) / 2, drawn(2, 3, 32, 32, seed=1)
    made = upscaler.drawn(network, small, noise)
    *_, last = sample(network, small, noise)
    assert torch.equal(made, last.large)
    made.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_folders_without_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a file"):
        upscaler.Pairs.load(tmp_path, 4)
    (tmp_path / "small.npy").write_bytes(b"")
    (tmp_path / "large.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match="not a folder of pairs"):
        upscaler.Pairs.load(tmp_path, 4)
    np.save(tmp_path / "small.npy", np.zeros((2, 8, 8, 3), np.uint8))
    np.save(tmp_path / "large.npy", np.zeros((3, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"must have the shape \(2, 32, 32, 3\)"):
        upscaler.Pairs.load(tmp_path, 4)
    np.save(tmp_path / "small.npy", np.zeros((2, 8), np.uint8))
    with pytest.raises(ValueError, match=r"must be \(N, h, w, 3\)"):
        upscaler.Pairs.load(tmp_path, 4)
    with pytest.raises(ValueError, match="no trained upscaler"):
        upscaler.trained(tmp_path / "state.pt")


def test_sharpness_is_that_of_the_truth_for_the_truth() -> None:
    pixels = drawn(2, 3, 16, 16)
    assert (upscaler.laplacian_energy(pixels) > upscaler.laplacian_energy(pixels * 0.5)).all()
    assert upscaler.laplacian_energy(torch.ones(1, 3, 8, 8)).item() == pytest.approx(0)


def test_folders_and_their_shares() -> None:
    assert upscaler.folders_of("a:2,b,c:d") == [(Path("a"), 2), (Path("b"), 1), (Path("c:d"), 1)]
    assert upscaler.folders_of("") == []
    with pytest.raises(ValueError, match="share of a must be above 0, got -1"):
        upscaler.folders_of("a:-1")


@pytest.mark.parametrize("crop", [0, 12, 40])
def test_crops_that_do_not_fit_are_refused(tmp_path: Path, crop: int) -> None:
    pairs = write_pairs(tmp_path / "pairs")
    options = upscaler.UpscalerOptions(pairs=str(pairs), crop=crop, out=tmp_path)
    with pytest.raises(ValueError, match=f"multiple of 8 between 8 and 32, got {crop}"):
        upscaler.train(options, RECIPE)
    with pytest.raises(ValueError, match="at least one folder"):
        upscaler.train(replace(options, pairs=","), RECIPE)


def test_crops_are_of_one_place_and_not_empty(tmp_path: Path) -> None:
    large = np.zeros((1, 96, 96, 3), np.uint8)
    large[:, 64:, 64:] = (
        np.random.default_rng(0).integers(0, 255, (8, 8, 3)).repeat(4, 0).repeat(4, 1)
    )
    small = large[:, ::4, ::4]
    rng, full = np.random.default_rng(0), 0
    for _ in range(30):
        one, two = upscaler.crops([(upscaler.Pairs(small, large), 1.0)], 1, 8, SMALL, rng)
        assert torch.equal(one, two[..., ::4, ::4])
        full += bool(one.std() > 0)
    assert full > 5  # one of nine places has something: 3.3 without the choice among three
