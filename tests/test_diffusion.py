"""The forward process, what a network may predict, and the training loss."""

import math
from itertools import product

import pytest
import torch

from pellucid.diffusion import (
    PREDICTIONS,
    Conditioning,
    add_noise,
    eps_from_x0,
    loss_weight,
    predictor,
    sample_t,
    target,
    to_x0,
    training_loss,
)
from pellucid.schedule import Level, Schedule


def pair(shape=(3, 2, 4, 4), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, *shape, generator=generator, dtype=dtype)
    return x0, eps


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine", "sigmoid", "laplace"])
def test_one_jump_is_all_the_single_steps(name):
    """x_t = sqrt(1 - beta_t) x_(t-1) + sqrt(beta_t) noise, t times: the same mean and variance."""
    schedule = Schedule(name)
    products = schedule.alphas_cumprod
    betas = 1 - products / torch.cat([torch.ones(1, dtype=torch.float64), products[:-1]])
    mean, variance = 1.0, 0.0  # of x_t, in units of x0
    alpha, sigma = schedule.alpha_sigma(torch.arange(1000, dtype=torch.float64))
    for t, beta in enumerate(betas.tolist()):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        assert alpha[t].item() == pytest.approx(mean, rel=1e-9)
        assert sigma[t].item() ** 2 == pytest.approx(variance, rel=1e-9)


def test_one_jump_by_drawing():
    """The same with pictures: 300 steps of fresh noise against one."""
    schedule, generator = Schedule(), torch.Generator().manual_seed(0)
    products = schedule.alphas_cumprod
    x = torch.full((20000,), 2.0, dtype=torch.float64)
    for t in range(300):
        keep = products[t] / (products[t - 1] if t else 1)
        fresh = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        x = keep.sqrt() * x + (1 - keep).sqrt() * fresh
    level = schedule.level(299)
    eps = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    jump = add_noise(torch.full_like(x, 2.0), eps, level.alpha, level.sigma)
    assert x.mean().item() == pytest.approx(jump.mean().item(), abs=0.02)
    assert x.var().item() == pytest.approx(jump.var().item(), abs=0.02)


LEVELS = [Schedule().level(300), Schedule("flow").level(300), Level(0.3, 2.0, 0)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("source", "to"), list(product(PREDICTIONS, PREDICTIONS)))
def test_each_prediction_turns_into_each_other(source, to, level):
    x0, eps = pair()
    x = add_noise(x0, eps, level.alpha, level.sigma)
    said = target(source, x0, eps, level.alpha, level.sigma)
    found = to_x0(source, said, x, level.alpha, level.sigma)
    assert torch.allclose(found, x0)
    noise = eps_from_x0(x, found, level)
    assert torch.allclose(noise, eps)
    other = target(to, found, noise, level.alpha, level.sigma)
    assert torch.allclose(other, target(to, x0, eps, level.alpha, level.sigma))


@pytest.mark.parametrize("kind", ["x0", "v", "flow"])
def test_pure_noise_needs_no_special_case(kind):
    x0, eps = pair()
    assert torch.allclose(to_x0(kind, target(kind, x0, eps, 0.0, 1.0), eps, 0.0, 1.0), x0)


def test_eps_says_nothing_at_pure_noise():
    x0, eps = pair()
    with pytest.raises(ValueError, match="alpha = 0"):
        to_x0("eps", eps, x0, 0.0, 1.0)


def test_eps_says_nothing_where_one_of_the_batch_is_pure_noise():
    x0, eps = pair()
    alpha = torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64).view(3, 1, 1, 1)
    with pytest.raises(ValueError, match="alpha = 0"):
        to_x0("eps", eps, x0, alpha, (1 - alpha**2).sqrt())
    assert to_x0("eps", eps[::2], x0[::2], alpha[::2], 0.5).isfinite().all()


def test_v_is_that_of_the_paper():
    """Salimans & Ho 2022: v is the derivative of x by the angle, alpha = cos, sigma = sin."""
    x0, eps = pair()
    angle, step = 0.7, 1e-6

    def x(a):
        return math.cos(a) * x0 + math.sin(a) * eps

    slope = (x(angle + step) - x(angle - step)) / (2 * step)
    assert torch.allclose(target("v", x0, eps, math.cos(angle), math.sin(angle)), slope)


def test_unknown_names():
    x0, eps = pair()
    with pytest.raises(ValueError, match=r"unknown prediction 'epss'; .*: eps"):
        target("epss", x0, eps, 1.0, 1.0)
    with pytest.raises(ValueError, match="unknown distribution of t"):
        sample_t("lognormal", 1, 1000)
    with pytest.raises(ValueError, match=r"unknown loss weighting 'min_snrr'; .*: min_snr"):
        loss_weight("min_snrr", "eps", torch.ones(1), torch.ones(1))


# --- conditioning ---


def cond(value, batch=1, length=3, pooled=True, sizes=False):
    return Conditioning(
        torch.full((batch, length, 4), float(value)),
        torch.full((batch, 5), float(value)) if pooled else None,
        torch.full((batch, 6), float(value)) if sizes else None,
    )


def test_cat_and_repeat():
    joined = Conditioning.cat([cond(1, 2, sizes=True), cond(2, 1, sizes=True)])
    assert len(joined) == 3
    assert joined.tokens[:, 0, 0].tolist() == [1, 1, 2]
    assert joined.sizes[:, 0].tolist() == [1, 1, 2]
    assert joined[1:].repeat(2).pooled[:, 0].tolist() == [1, 2, 1, 2]
    assert Conditioning.cat([cond(1, pooled=False)]).pooled is None


def test_mix_is_the_weighted_mean():
    mixed = Conditioning.mix([(cond(1), 3.0), (cond(5), 1.0)])
    assert mixed.tokens.unique().tolist() == [2.0]
    assert mixed.pooled.unique().tolist() == [2.0]


def test_what_cannot_be_joined():
    with pytest.raises(ValueError, match="at least one conditioning"):
        Conditioning.cat([])
    with pytest.raises(ValueError, match=r"tokens are \(1, 3, 4\), \(1, 2, 4\)"):
        Conditioning.cat([cond(1), cond(1, length=2)])
    with pytest.raises(ValueError, match="different kinds"):
        Conditioning.mix([(cond(1), 1.0), (cond(1, pooled=False), 1.0)])
    with pytest.raises(ValueError, match="must be positive, got 0"):
        Conditioning.mix([(cond(1), 1.0), (cond(1), -1.0)])
    with pytest.raises(ValueError, match="must be positive, got nan"):
        Conditioning.mix([(cond(1), math.nan)])


def test_to():
    there = cond(1, sizes=True).to(dtype=torch.float64)
    assert there.tokens.dtype == there.pooled.dtype == there.sizes.dtype == torch.float64


# --- training ---


def test_uniform_t():
    t = sample_t("uniform", 20000, 1000, torch.Generator().manual_seed(0))
    assert t.shape == (20000,) and t.min() >= 0 and t.max() < 1000
    assert t.mean().item() == pytest.approx(500, abs=10)
    assert t.std().item() == pytest.approx(1000 / math.sqrt(12), abs=10)


def test_logit_normal_t():
    t = sample_t("logit_normal", 20000, 1000, torch.Generator().manual_seed(0))
    logits = torch.logit(t.double() / 1000)
    assert logits.mean().item() == pytest.approx(0, abs=0.03)
    assert logits.std().item() == pytest.approx(1, abs=0.03)


def test_a_share_of_uniform_times_reaches_the_ends():
    few, many = (
        sample_t("logit_normal", 20000, 1000, torch.Generator().manual_seed(0), uniform=share)
        for share in (0.0, 0.3)
    )
    assert (few > 990).sum() <= 1  # P(n > 4.6)
    assert (many > 990).float().mean().item() == pytest.approx(0.3 * 0.01, rel=0.5)
    with pytest.raises(ValueError, match="share of uniform times must be between 0 and 1, got 2"):
        sample_t("logit_normal", 1, 1000, uniform=2)


@pytest.mark.parametrize("kind", ["uniform", "logit_normal"])
def test_discrete_t(kind):
    t = sample_t(kind, 5000, 10, torch.Generator().manual_seed(0), discrete=True)
    assert set(t.tolist()) == set(range(10))


def test_min_snr_is_that_of_the_paper():
    """Hang et al. 2023, gamma = 5."""
    alpha, sigma = Schedule().alpha_sigma(torch.arange(0, 1000, 37, dtype=torch.float64))
    snr = alpha**2 / sigma**2
    capped = snr.clamp(max=5)
    assert snr.max() > 5 > snr.min()
    for prediction, wanted in (
        ("x0", capped),
        ("eps", capped / snr),
        ("v", capped / (snr + 1)),
    ):
        assert torch.allclose(loss_weight("min_snr", prediction, alpha, sigma), wanted)


def test_min_snr_of_flow_weighs_x0_the_same():
    """The weighted error is one number, whichever way the network says it."""
    schedule = Schedule("flow")
    alpha, sigma = schedule.alpha_sigma(torch.tensor([300.0, 900.0], dtype=torch.float64))
    in_x0 = loss_weight("min_snr", "x0", alpha, sigma) * 0.1**2
    for prediction in ("flow", "v", "eps"):
        a, s = alpha, sigma
        x0, eps = pair((2,))
        x = add_noise(x0, eps, a, s)
        off = target(prediction, x0 + 0.1, (x - a * (x0 + 0.1)) / s, a, s)
        error = (off - target(prediction, x0, eps, a, s)) ** 2
        assert torch.allclose(loss_weight("min_snr", prediction, a, s) * error, in_x0)


def test_min_snr_at_pure_noise_is_finite():
    alpha, sigma = torch.tensor([0.0]), torch.tensor([1.0])
    for prediction in PREDICTIONS:
        assert loss_weight("min_snr", prediction, alpha, sigma).isfinite().all()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weighting", ["uniform", "min_snr"])
def test_training_loss(prediction, weighting):
    """A network that is right has no loss; one that says 0 has the target's weighted square."""
    schedule, (x0, eps) = Schedule(), pair(dtype=torch.float32)
    t = torch.tensor([10.0, 400.0, 990.0])
    alpha, sigma = schedule.alpha_sigma(t)
    a, s = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
    goal = target(prediction, x0, eps, a, s)

    def right(x, at, told):
        assert torch.equal(at, t) and told is NONE
        assert torch.allclose(x, a * x0 + s * eps)
        return goal

    options = (x0, NONE, schedule, prediction, t, eps, weighting)
    assert training_loss(right, *options).tolist() == [0, 0, 0]
    loss = training_loss(lambda x, at, told: torch.zeros_like(x), *options)
    weight = loss_weight(weighting, prediction, alpha, sigma)
    assert loss.shape == (3,)
    assert torch.allclose(loss, weight * (goal**2).mean((1, 2, 3)))


NONE = cond(0, 3)


@pytest.mark.parametrize(("name", "last"), [("cosine", 999.0), ("flow", 999.75)])
def test_no_network_is_told_a_time_past_the_last(name, last):
    """Continuous t go up to T, and the betas only to T - 1."""
    (x0, eps), told = pair(dtype=torch.float32), []

    def network(x, t, cond):
        told.extend(t.tolist())
        return torch.zeros_like(x)

    t = torch.tensor([0.25, 998.5, 999.75])
    training_loss(network, x0, NONE, Schedule(name), "v", t, eps)
    assert told == [0.25, 998.5, last]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_predictor(prediction):
    """A network that always tells the truth is turned into a function that gives x0."""
    x0, eps = pair(dtype=torch.float32)
    level = Schedule().level(123.5)

    def network(x, t, told):
        assert t.shape == (3,) and t.unique().item() == 123.5 and t.dtype == x.dtype
        return target(prediction, x0, eps, level.alpha, level.sigma)

    x = add_noise(x0, eps, level.alpha, level.sigma)
    assert torch.allclose(predictor(network, prediction)(x, level, NONE), x0, atol=1e-5)
