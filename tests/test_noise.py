"""Types of noise; one seed for each image."""

import pytest
import torch

from pellucid import noise

SHAPE = (4, 16, 24)


@pytest.mark.parametrize("kind", noise.NOISES)
def test_an_image_depends_on_its_own_seed_alone(kind):
    batch = noise.draw(kind, SHAPE, noise.generators(10, 3))
    assert batch.shape == (3, *SHAPE) and batch.dtype == torch.float32
    for i in range(3):
        assert torch.equal(batch[i : i + 1], noise.draw(kind, SHAPE, noise.generators(10 + i, 1)))
    assert not torch.allclose(batch[0], batch[1])


def test_gaussian_is_the_draw_that_a_seed_means_elsewhere():
    wanted = torch.randn((1, 4, 64, 64), generator=torch.Generator().manual_seed(42))
    assert torch.equal(noise.draw("gaussian", (4, 64, 64), noise.generators(42, 1)), wanted)


@pytest.mark.parametrize("kind", noise.NOISES)
def test_mean_0_and_variance_1(kind):
    drawn = noise.draw(kind, (4, 32, 32), noise.generators(0, 64))
    assert drawn.mean().abs() < 0.05
    assert drawn.square().mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", noise.NOISES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 5)])
def test_small_and_odd_shapes(kind, shape):
    drawn = noise.draw(kind, shape, noise.generators(0, 2))
    assert drawn.shape == (2, *shape) and drawn.isfinite().all()


def neighbours(kind):
    drawn = noise.draw(kind, (4, 32, 32), noise.generators(0, 16))
    return (drawn[..., 1:] * drawn[..., :-1]).mean().item()


def test_correlation_of_neighbours():
    assert neighbours("gaussian") == pytest.approx(0, abs=0.02)
    assert neighbours("blue") < -0.1
    assert neighbours("pink") > 0.2
    assert neighbours("pyramid") > 0.2


def test_offset_moves_the_mean_of_a_channel():
    def spread(kind):
        return noise.draw(kind, (4, 32, 32), noise.generators(0, 64)).mean((2, 3)).std().item()

    assert spread("gaussian") == pytest.approx(1 / 32, rel=0.2)
    assert spread("offset") == pytest.approx(0.1, rel=0.2)


def test_source_goes_on_from_where_the_generators_are():
    source = noise.source(noise.generators(5, 2))
    x = torch.zeros(2, *SHAPE, dtype=torch.float64)
    first, second = source(x), source(x)
    assert first.dtype == torch.float64 and not torch.equal(first, second)
    expected = noise.generators(5, 2)
    assert torch.equal(first.float(), noise.draw("gaussian", SHAPE, expected))
    assert torch.equal(second.float(), noise.draw("gaussian", SHAPE, expected))


def test_slerp_ends_and_keeps_the_length():
    a, b = noise.draw("gaussian", SHAPE, noise.generators(0, 4)).chunk(2)
    assert torch.allclose(noise.slerp(a, b, 0), a, atol=1e-6)
    assert torch.allclose(noise.slerp(a, b, 1), b, atol=1e-6)
    middle = noise.slerp(a, b, 0.5)
    assert middle.std().item() == pytest.approx(1, abs=0.03)
    assert torch.lerp(a, b, 0.5).std().item() == pytest.approx(0.71, abs=0.03)
    turn = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    expected = torch.tensor([[3**0.5 / 2, 0.5]])  # a third of a right angle
    assert torch.allclose(noise.slerp(*turn, 1 / 3), expected)


def test_slerp_of_the_same_is_the_same():
    a = noise.draw("gaussian", SHAPE, noise.generators(0, 1))
    assert torch.allclose(noise.slerp(a, a, 0.3), a, atol=1e-6)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_slerp_weight_out_of_range(weight):
    with pytest.raises(ValueError, match="from 0 to 1"):
        noise.slerp(torch.ones(1, 2), torch.ones(1, 2), weight)


@pytest.mark.parametrize(("seed", "count"), [(-1, 1), (2**70, 1), (2**63 - 1, 2), (0, 0)])
def test_seed_out_of_range(seed, count):
    with pytest.raises(ValueError, match="must be"):
        noise.generators(seed, count)


def test_largest_seed():
    assert len(noise.generators(2**63 - 2, 2)) == 2


def test_unknown_noise():
    with pytest.raises(ValueError, match=r"unknown noise 'gausian'; .*: gaussian"):
        noise.draw("gausian", SHAPE, noise.generators(0, 1))
