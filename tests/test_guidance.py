"""Guidance: what it computes, and how often it asks the network."""

import math

import pytest
import torch

from pellucid import guidance
from pellucid.diffusion import Conditioning, eps_from_x0, target, to_x0
from pellucid.guidance import (
    ByStep,
    ClassifierFree,
    clip_guidance,
    interpolate,
    signal_share,
    step_at,
)
from pellucid.schedule import CLEAN, Level, Schedule
from references import unguided

LEVEL = Schedule().level(500)


def cond(value, batch=1):
    return Conditioning(
        torch.full((batch, 3, 4), float(value)), torch.full((batch, 4), float(value))
    )


class Network:
    """Its estimate of x0 depends on x, the level and the conditioning; it remembers its batches."""

    def __init__(self):
        self.batches = []

    def __call__(self, x, level, told):
        assert len(x) == len(told)
        self.batches.append(len(x))
        says = told.pooled.mean(1).view(-1, 1, 1, 1)
        return torch.sin(x * (1 + says)) + says * level.alpha


def x_of(batch=2):
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def look(value, x):
    return Network()(x, LEVEL, cond(value, len(x)))


def test_formula_in_one_batched_call():
    network, x = Network(), x_of()
    parts = ClassifierFree(network, cond(1), cond(-1), 5.0)(x, LEVEL)
    assert network.batches == [4]
    assert torch.allclose(parts.cond, look(1, x))
    assert torch.allclose(parts.uncond, look(-1, x))
    assert torch.allclose(parts.guided, look(-1, x) + 5 * (look(1, x) - look(-1, x)), atol=1e-5)


def test_guiding_x0_is_guiding_eps():
    x = x_of()
    parts = ClassifierFree(Network(), cond(1), cond(0), 3.0)(x, LEVEL)
    eps = [eps_from_x0(x, part, LEVEL) for part in parts]
    assert torch.allclose(eps[0], eps[2] + 3 * (eps[1] - eps[2]), atol=1e-4)


@pytest.mark.parametrize("uncond", [None, cond(0)])
def test_scale_1_costs_no_second_pass(uncond):
    network, x = Network(), x_of()
    out = ClassifierFree(network, cond(1), uncond, 1.0, rescale=0.7)(x, LEVEL).guided
    assert network.batches == [2]
    assert torch.equal(out, look(1, x))


def test_scale_0_is_the_negative_prompt():
    x = x_of()
    assert torch.allclose(
        ClassifierFree(Network(), cond(1), cond(-2), 0.0)(x, LEVEL).guided, look(-2, x)
    )


def test_a_conditioning_for_each_picture():
    x = x_of()
    each = Conditioning.cat([cond(1), cond(2)])
    parts = ClassifierFree(Network(), each, cond(0), 2.0)(x, LEVEL)
    assert torch.allclose(parts.cond[1:], look(2, x)[1:])
    with pytest.raises(ValueError, match="for 2 pictures and x has 3"):
        ClassifierFree(Network(), each, cond(0), 2.0)(x_of(3), LEVEL)


def test_interval():
    levels = Schedule("flow").levels(10, "uniform")[:-1]
    network = Network()
    guide = ClassifierFree(network, cond(1), cond(0), 4.0, interval=(0.25, 0.65))
    for level in levels:
        parts = guide(x_of(1), level)
        if len(network.batches) not in (4, 5, 6, 7):  # signal_share 0.3 .. 0.6
            assert torch.equal(parts.guided, parts.cond)
    assert network.batches == [1, 1, 1, 2, 2, 2, 2, 1, 1, 1]


def test_progress():
    assert signal_share(Level(0.0, 1.0, 1000.0)) == 0
    assert signal_share(CLEAN) == 1
    done = [signal_share(level) for level in Schedule().levels(20)]
    assert done == sorted(done)


def test_rescale_is_that_of_the_paper():
    """diffusers' rescale_noise_cfg, on v."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    x, (a, s) = x_of(), (LEVEL.alpha, LEVEL.sigma)
    plain = ClassifierFree(Network(), cond(1), cond(0), 7.5)(x, LEVEL)
    v = [target("v", part, eps_from_x0(x, part, LEVEL), a, s) for part in plain]
    wanted = to_x0("v", rescale_noise_cfg(v[0], v[1], guidance_rescale=0.7), x, a, s)
    out = ClassifierFree(Network(), cond(1), cond(0), 7.5, rescale=0.7)(x, LEVEL).guided
    assert torch.allclose(out, wanted, atol=1e-4)
    assert out.std() < plain.guided.std()


def test_rescale_at_pure_noise_is_on_x0():
    x, level = x_of(), Level(0.0, 1.0, 999.0)
    parts = ClassifierFree(Network(), cond(1), cond(0), 7.5, rescale=1.0)(x, level)
    over = (1, 2, 3)
    assert torch.allclose(parts.guided.std(over), parts.cond.std(over), rtol=1e-4)


def test_mixing_prompts_by_estimate_is_one_call():
    network, x = Network(), x_of()
    guide = ClassifierFree(network, [(cond(1), 0.75), (cond(2), 0.25)], cond(0), 2.0)
    parts = guide(x, LEVEL)
    assert network.batches == [6]
    mixed = 0.75 * look(1, x) + 0.25 * look(2, x)
    assert torch.allclose(parts.cond, mixed, atol=1e-6)
    assert torch.allclose(parts.guided, look(0, x) + 2 * (mixed - look(0, x)), atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_prompts_that_are_added_up(scale):
    """Liu et al. 2022, eq. 11, as the web UI computes it: each prompt's own difference, weighted."""
    network, x = Network(), x_of()
    wanted = [(cond(1), 0.8), (cond(2), -0.3)]
    parts = ClassifierFree(network, wanted, cond(0), scale)(x, LEVEL)
    assert network.batches == [6]
    base = look(0, x)
    expected = base + scale * (0.8 * (look(1, x) - base) - 0.3 * (look(2, x) - base))
    assert torch.allclose(parts.guided, expected, atol=1e-5)
    early = ClassifierFree(network, wanted, cond(0), scale, interval=(0.9, 1.0))(x, LEVEL)
    assert torch.allclose(early.guided, parts.cond) and torch.equal(early.guided, early.cond)


def test_prompts_by_step():
    """A look belongs to the last step that has begun, wherever a sampler looks from."""
    levels = [Schedule().level(t) for t in (999, 600, 300)]
    guides = [ClassifierFree(Network(), cond(i), None, 1.0) for i in (1, 2, 3)]
    by_step = ByStep(levels, guides)
    x = x_of()
    for t, step in ((999, 1), (700, 1), (600, 2), (301, 2), (300, 3), (5, 3)):
        level = Schedule().level(t)
        assert step_at(levels, level) == step - 1
        assert torch.equal(by_step(x, level).guided, guides[step - 1](x, level).guided)
    pure = Level(0.0, 1.0, 999)
    assert torch.equal(by_step(x, pure).guided, guides[0](x, pure).guided)


def test_mixing_the_estimates_is_mixing_the_noise():
    x = x_of()
    guide = ClassifierFree(Network(), [(cond(1), 0.25), (cond(2), 0.75)], None, 1.0)
    mixed = guide(x, LEVEL).guided
    assert torch.allclose(mixed, 0.25 * look(1, x) + 0.75 * look(2, x), atol=1e-6)
    noises = [eps_from_x0(x, look(value, x), LEVEL) for value in (1, 2)]
    expected = 0.25 * noises[0] + 0.75 * noises[1]
    assert torch.allclose(eps_from_x0(x, mixed, LEVEL), expected, atol=1e-5)


def test_mixing_by_embedding_is_not_mixing_by_estimate():
    x = x_of()
    halves = [(cond(1), 0.5), (cond(2), 0.5)]
    by_embedding = ClassifierFree(Network(), Conditioning.mix(halves), None, 1.0)(x, LEVEL).guided
    assert torch.allclose(by_embedding, look(1.5, x))
    assert not torch.allclose(
        by_embedding, ClassifierFree(Network(), halves, None, 1.0)(x, LEVEL).guided
    )


@pytest.mark.parametrize("kind", guidance.INTERPOLATIONS)
def test_walk(kind):
    generator = torch.Generator().manual_seed(0)
    a, b = (
        Conditioning(
            torch.randn(2, 3, 64, generator=generator), torch.randn(2, 64, generator=generator)
        )
        for _ in range(2)
    )
    for weight, end in ((0.0, a), (1.0, b)):
        there = interpolate(a, b, weight, kind)
        assert torch.allclose(there.tokens, end.tokens, atol=1e-5)
        assert torch.allclose(there.pooled, end.pooled, atol=1e-5)
    middle = interpolate(a, b, 0.5, kind)
    assert middle.tokens.shape == a.tokens.shape
    shorter = middle.tokens.norm() / a.tokens.norm()
    assert shorter.item() == pytest.approx(1.0 if kind == "slerp" else 0.71, abs=0.1)


def test_interpolation_without_pooled_and_out_of_range():
    a = Conditioning(torch.ones(1, 2, 3))
    assert interpolate(a, a, 0.5).pooled is None
    with pytest.raises(ValueError, match="from 0 to 1"):
        interpolate(a, a, 1.5)
    with pytest.raises(ValueError, match=r"unknown interpolation 'slrp'; .*: slerp"):
        interpolate(a, a, 0.5, "slrp")


def likeness(x0, text):
    return torch.cosine_similarity(x0.mean((2, 3)), text)


def test_clip_guidance_follows_the_gradient_through_the_network():
    x, text = x_of().double(), torch.tensor([[1.0, -1.0, 0.5, 0.0]], dtype=torch.float64)

    def denoise(x, level):
        return torch.tanh(x) * level.alpha

    def pool(pixels):
        return (pixels / 2).mean((2, 3))

    with torch.no_grad():  # as in a pipeline
        parts = clip_guidance(unguided(denoise), lambda x0: 2 * x0, pool, text, 50.0)(x, LEVEL)
    out = parts.guided
    plain = denoise(x, LEVEL)
    assert torch.equal(parts.cond, plain) and not parts.cond.requires_grad
    step = 1e-5
    nudge = torch.zeros_like(x)
    nudge[1, 2, 3, 4] = step
    rise = likeness(denoise(x + nudge, LEVEL), text) - likeness(denoise(x - nudge, LEVEL), text)
    slope = rise[1].item() / (2 * step)
    moved = (out - plain)[1, 2, 3, 4].item()
    assert moved == pytest.approx(50 * LEVEL.sigma**2 / LEVEL.alpha * slope, rel=1e-4)
    assert not out.requires_grad
    assert (likeness(out, text) > likeness(plain, text)).all()


@pytest.mark.parametrize(("scale", "level"), [(0.0, LEVEL), (50.0, Level(0.0, 1.0, 999.0))])
def test_no_clip_guidance_where_there_is_none(scale, level):
    def never(x):
        raise AssertionError("CLIP was asked")

    x = x_of()
    guided = unguided(lambda x, level: x.tanh())
    out = clip_guidance(guided, never, never, torch.ones(1, 4), scale)(x, level).guided
    assert torch.equal(out, x.tanh())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": math.nan}, "finite"),
        ({"scale": math.inf}, "finite"),
        ({"rescale": 1.5}, "rescale must be from 0 to 1, got 1.5"),
        ({"rescale": math.nan}, "rescale"),
        ({"interval": (0.6, 0.4)}, "interval"),
        ({"interval": (-0.1, 1.0)}, "interval"),
        ({"uncond": None}, "needs uncond"),
        ({"cond": [(cond(1), math.inf)]}, "weights of cond must be .* got .inf."),
        ({"cond": []}, "weights of cond must be one or more .* got .."),
        ({"cond": [(cond(1), 2.0)], "uncond": None, "scale": 1.0}, "need uncond"),
    ],
)
def test_bad_input(options, message):
    settings = {"predict": Network(), "cond": cond(1), "uncond": cond(0), "scale": 5.0} | options
    with pytest.raises(ValueError, match=message):
        ClassifierFree(**settings)(x_of(), LEVEL)


def test_bad_clip_scale():
    with pytest.raises(ValueError, match="finite"):
        clip_guidance(
            unguided(lambda x, level: x), lambda x: x, lambda x: x, torch.ones(1, 4), math.nan
        )
