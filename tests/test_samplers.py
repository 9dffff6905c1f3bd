"""Samplers against two independent statements: an exact denoiser, and diffusers' solvers."""

import math
from functools import lru_cache
from itertools import pairwise

import diffusers
import pytest
import torch
from torch import nn

from pellucid import samplers
from pellucid.diffusion import Conditioning, predictor
from pellucid.guidance import ClassifierFree
from pellucid.schedule import CLEAN, Level, Schedule
from references import unguided

# diffusers and not Pellucid: numpy reads a tensor; lms integrates its polynomials with scipy's quad.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The occurrence of roundoff error"),
]

# A mixture of three Gaussians in the plane: its x0 estimate at every level is known exactly.
MEANS = torch.tensor([[1.0, 0.5], [-1.0, 0.0], [0.3, -1.2]], dtype=torch.float64)
VARIANCES = torch.tensor([0.3, 0.2, 0.25], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

VP = Schedule()
ZERO_SNR = Schedule(zero_terminal_snr=True)
FLOW = Schedule("flow")
DETERMINISTIC = [name for name in samplers.names() if samplers.get(name).spec.order is not None]
# Single-step solvers look once more between two levels, or at the next one.
TWO_LOOKS = {"heun", "dpm2", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "restart"}
OWN_LEVELS = {"dpm_fast", "dpm_adaptive"}
STOCHASTIC = [name for name in samplers.names() if samplers.get(name).spec.order is None]


def mixture(x, level):
    spread = level.alpha**2 * VARIANCES + level.sigma**2
    away = x[:, None] - level.alpha * MEANS
    log = WEIGHTS.log() - spread.log() - away.square().sum(-1) / (2 * spread)
    shrink = level.alpha * VARIANCES / spread
    return (log.softmax(1)[..., None] * (MEANS + shrink[:, None] * away)).sum(1)


def draw_mixture(count, generator):
    which = torch.multinomial(WEIGHTS, count, replacement=True, generator=generator)
    eps = torch.randn(count, 2, dtype=torch.float64, generator=generator)
    return MEANS[which] + VARIANCES[which].sqrt()[:, None] * eps


def fresh(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator)


def no_noise(x):
    raise AssertionError("a deterministic sampler asked for noise")


def last(name, denoise, x, levels, noise=no_noise, **options):
    for step in samplers.get(name).steps(unguided(denoise), x, levels, noise, **options):
        x = step.x
    return x


def even_in_log_snr(count, most=80.0, least=0.05):
    ramp = torch.logspace(math.log10(most), math.log10(least), count + 1, dtype=torch.float64)
    return [VP.level_at_s(s) for s in ramp.tolist()]


def start(count=64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 2, dtype=torch.float64, generator=generator)


def runge_kutta(x, levels):
    """The classic fourth-order method on dy/ds = (y - x0) / s, y = x / alpha."""

    def slope(y, s):
        level = Level(1 / math.hypot(1, s), s / math.hypot(1, s), 0.0)
        return (y - mixture(y * level.alpha, level)) / s

    y = x / levels[0].alpha
    for now, after in pairwise(levels):
        s, h = now.s, after.s - now.s
        k1 = slope(y, s)
        k2 = slope(y + h / 2 * k1, s + h / 2)
        k3 = slope(y + h / 2 * k2, s + h / 2)
        k4 = slope(y + h * k3, s + h)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y * levels[-1].alpha


@lru_cache(maxsize=1)
def far_end():
    return runge_kutta(start(), even_in_log_snr(1200))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_of_convergence(name):
    exact = far_end()
    errors = [
        (last(name, mixture, start(), even_in_log_snr(n)) - exact).norm().item() for n in (80, 160)
    ]
    order = samplers.get(name).spec.order
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["lms", "deis"])
def test_multistep_has_the_order_that_was_asked_for(name, order):
    exact = far_end()
    errors = [
        (last(name, mixture, start(), even_in_log_snr(n), order=order) - exact).norm().item()
        for n in (80, 160)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_flow_converges_from_pure_noise(name):
    """From alpha = 0 on, a path that no log SNR describes, to a clean picture."""
    fine = last("heun", mixture, start(), FLOW.levels(800, "uniform"))
    errors = [
        (last(name, mixture, start(), FLOW.levels(n, "uniform")) - fine).norm().item()
        for n in (20, 40, 80)
    ]
    assert errors[0] > 1.7 * errors[1] > 1.7 * 1.7 * errors[2]


def mixture_cdf(x):
    """P(first coordinate <= x)."""
    z = (x[:, None] - MEANS[:, 0]) / VARIANCES.sqrt()
    return (WEIGHTS * torch.special.ndtr(z)).sum(1)


def kolmogorov(samples):
    values = samples[:, 0].sort().values
    steps = torch.arange(1, len(values) + 1, dtype=torch.float64) / len(values)
    return (mixture_cdf(values) - steps).abs().max().item()


@pytest.mark.parametrize("schedule", [VP, ZERO_SNR, FLOW], ids=["vp", "zero_snr", "flow"])
@pytest.mark.parametrize("name", [name for name in samplers.names() if name != "lcm"])
def test_distribution_is_reached(name, schedule):
    count = 4000  # the 99.9% point of the Kolmogorov distance is 1.95 / sqrt(count) = 0.031
    levels = schedule.levels(100, "karras")
    generator = torch.Generator().manual_seed(3)
    x0 = draw_mixture(count, generator)
    eps = torch.randn(count, 2, dtype=torch.float64, generator=generator)
    x = levels[0].alpha * x0 + levels[0].sigma * eps
    out = last(name, mixture, x, levels, fresh())
    assert kolmogorov(x0) < 0.031
    assert kolmogorov(out) < 0.031 + 0.01  # and the error of 100 steps
    mean = (WEIGHTS[:, None] * MEANS).sum(0)
    second = (WEIGHTS[:, None] * (MEANS**2 + VARIANCES[:, None])).sum(0)
    assert torch.allclose(out.mean(0), mean, atol=0.06)
    assert torch.allclose(out.square().mean(0), second, atol=0.1)


def test_lcm_reaches_the_distribution_of_a_consistency_model():
    """For one Gaussian the end of the path is a straight function of x."""
    mean, variance = 0.7, 0.4

    def consistency(x, level):
        spread = level.alpha**2 * variance + level.sigma**2
        return mean + math.sqrt(variance / spread) * (x - level.alpha * mean)

    generator = torch.Generator().manual_seed(5)
    levels = VP.levels(4, "trailing")
    x0 = mean + math.sqrt(variance) * torch.randn(40000, dtype=torch.float64, generator=generator)
    x = levels[0].alpha * x0 + levels[0].sigma * fresh(6)(x0)
    out = last("lcm", consistency, x, levels, fresh())
    assert out.mean().item() == pytest.approx(mean, abs=0.02)
    assert out.var().item() == pytest.approx(variance, abs=0.02)


# --- the same numbers as diffusers ---------------------------------------------------------------


class Tiny(nn.Module):
    """A random network that depends smoothly on x and t."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(4, 16, 3, 1, 1), nn.Conv2d(16, 4, 3, 1, 1)
        self.requires_grad_(False)

    def forward(self, x, t, cond):
        t = torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1, 1, 1) / 1000
        return 0.5 * x + self.second(torch.tanh(self.first(x) + torch.cos(5 * t)))


NOTHING = Conditioning(torch.zeros(1, 1, 1))
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def noisy_start():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))


def run_diffusers(scheduler, steps, scale=1.0):
    scheduler.set_timesteps(steps)
    network, x = Tiny(), noisy_start() * scale
    generator = torch.Generator().manual_seed(1)
    takes_generator = "generator" in scheduler.step.__code__.co_varnames
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), t, NOTHING)
        options = {"generator": generator} if takes_generator else {}
        x = scheduler.step(output, t, x, return_dict=False, **options)[0]
    return x


def run_pellucid(name, levels, noise=no_noise, **options):
    predict = predictor(Tiny(), "eps")
    return last(
        name, lambda x, level: predict(x, level, NOTHING), noisy_start(), levels, noise, **options
    )


def levels_of(scheduler, steps):
    """The scheduler's own sigmas and (where it rounds them) t, as levels."""
    scheduler.set_timesteps(steps)
    sigmas, times = scheduler.sigmas.double(), scheduler.timesteps.double()
    if len(times) == 2 * steps - 1:  # Heun lists each inner point twice
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])
        times = torch.cat([times[:1], times[1::2]])
    return [
        Level(1 / math.hypot(1, s), s / math.hypot(1, s), t)
        for s, t in zip(sigmas.tolist(), [*times.tolist(), 0.0], strict=True)
    ]


def assert_same(ours, theirs):
    assert theirs.abs().max() > 0.5  # not a comparison of nothing with nothing
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5), (ours - theirs).abs().max()


@pytest.mark.parametrize("final", ["clean", "first"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_diffusers(eta, final):
    scheduler = diffusers.DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=final == "clean", steps_offset=1
    )
    scheduler.set_timesteps(10)
    network, x = Tiny(), noisy_start()
    generator = torch.Generator().manual_seed(1)
    for t in scheduler.timesteps:
        output = network(x, t, NOTHING)
        x = scheduler.step(output, t, x, eta=eta, generator=generator, return_dict=False)[0]
    assert_same(run_pellucid("ddim", VP.levels(10, "leading", final), fresh(), eta=eta), x)


def test_ddpm_is_diffusers():
    scheduler = diffusers.DDPMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing")
    theirs = run_diffusers(scheduler, 10)
    assert_same(run_pellucid("ddpm", VP.levels(10, "trailing"), fresh()), theirs)


def test_lcm_is_diffusers():
    scheduler = diffusers.LCMScheduler(**BETAS, clip_sample=False)
    theirs = run_diffusers(scheduler, 4)
    # LCM takes its times from the 50 that the teacher was asked at; they are not one of the spacings.
    levels = [*(VP.level(float(t)) for t in scheduler.timesteps), CLEAN]
    assert_same(run_pellucid("lcm", levels, fresh()), theirs)


# diffusers keeps y = x / alpha (k-diffusion's coordinates) in these, so its x starts larger.
KARRAS_COORDINATES = {
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "lms": diffusers.LMSDiscreteScheduler,
}


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("name", KARRAS_COORDINATES)
def test_is_diffusers_in_karras_coordinates(name, spacing):
    scheduler = KARRAS_COORDINATES[name](**BETAS, timestep_spacing=spacing)
    levels = levels_of(scheduler, 10)
    theirs = run_diffusers(scheduler, 10, scale=1 / levels[0].alpha)
    noise = no_noise if name in DETERMINISTIC else fresh()
    assert_same(run_pellucid(name, levels, noise), theirs)


@pytest.mark.parametrize("steps", [8, 20])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_is_diffusers_in_log_snr(name, karras, final, steps):
    """The levels are the scheduler's own, because it rounds the t of Karras's sigmas.

    Where it ends with some noise left, no order has to be lowered.
    """
    shared = {**BETAS, "solver_order": 2, "use_karras_sigmas": karras, "final_sigmas_type": final}
    shared["lower_order_final"] = final == "zero"
    if name == "unipc":
        scheduler = diffusers.UniPCMultistepScheduler(**shared, solver_type="bh2")
    else:
        kind = "sde-dpmsolver++" if name == "dpmpp_2m_sde" else "dpmsolver++"
        scheduler = diffusers.DPMSolverMultistepScheduler(
            **shared, algorithm_type=kind, solver_type="midpoint"
        )
    levels = levels_of(scheduler, steps)
    theirs = run_diffusers(scheduler, steps)
    noise = no_noise if name in DETERMINISTIC else fresh()
    assert_same(run_pellucid(name, levels, noise), theirs)


# --- what the files say of each other -----------------------------------------------------------


def test_names_that_mean_the_same_numbers():
    levels = VP.levels(10, "karras")
    euler = last("euler", mixture, start(), levels)
    assert torch.allclose(euler, last("ddim", mixture, start(), levels))
    assert torch.allclose(euler, last("euler_ancestral", mixture, start(), levels, eta=0))
    assert torch.allclose(euler, last("ddim_cfgpp", mixture, start(), levels))
    assert torch.allclose(euler, last("lms", mixture, start(), levels, order=1))
    ddpm = last("ddpm", mixture, start(), levels, fresh())
    assert torch.allclose(ddpm, last("ddim", mixture, start(), levels, fresh(), eta=1))
    assert torch.allclose(ddpm, last("euler_ancestral", mixture, start(), levels, fresh()))
    still = last("dpmpp_2m_sde", mixture, start(), levels, eta=0)
    assert torch.allclose(still, last("dpmpp_2m", mixture, start(), levels))
    assert torch.allclose(euler, last("deis", mixture, start(), levels, order=1))
    midpoint = last("dpm2", mixture, start(), levels)
    assert torch.allclose(midpoint, last("dpm2_ancestral", mixture, start(), levels, eta=0))
    single = last("dpmpp_sde", mixture, start(), levels, eta=0)
    assert torch.allclose(single, last("dpmpp_2s_ancestral", mixture, start(), levels, eta=0))
    assert torch.allclose(
        last("restart", mixture, start(), levels), last("heun", mixture, start(), levels)
    )


@pytest.mark.parametrize("schedule", [VP, ZERO_SNR, FLOW], ids=["vp", "zero_snr", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", samplers.names())
def test_yields_each_level_and_is_finite(name, steps, schedule):
    levels = schedule.levels(steps, "trailing")
    looked = []

    def denoise(x, level):
        assert x.isfinite().all()
        looked.append(level)
        return mixture(x, level)

    out = list(samplers.get(name).steps(unguided(denoise), start(), levels, fresh()))
    assert all(step.x.isfinite().all() and step.x0.isfinite().all() for step in out)
    assert all(level.sigma > 0 for level in looked)  # the clean level is never looked from
    assert looked[0] == levels[0] and out[-1].level == levels[-1]
    if name in OWN_LEVELS:
        assert len(out) == steps and len(looked) in ([steps] if name == "dpm_fast" else range(300))
        return
    assert [step.level for step in out] == levels[1:]
    assert [level for level in dict.fromkeys(looked) if level in levels] == levels[:-1]
    if name in TWO_LOOKS:
        first = 1 if levels[0].alpha == 0 and steps > 1 else 0  # Euler's step, as the last
        assert len(looked) == 2 * steps - 1 - first
    else:
        assert len(looked) == steps + (name == "plms" and steps > 1 + (levels[0].alpha == 0))


@pytest.mark.parametrize("name", [name for name in samplers.names() if name != "lcm"])
def test_the_last_step_lands_on_the_last_estimate(name):
    """The step to sigma = 0 is of first order, but for those whose polynomial goes on."""
    *_, end = samplers.get(name).steps(unguided(mixture), start(), VP.levels(12, "karras"), fresh())
    if name in ("lms", "plms"):
        assert torch.allclose(end.x, end.x0, atol=0.01)
    else:
        assert torch.allclose(end.x, end.x0)


def test_stopping_early_looks_no_further():
    looks = []
    steps = samplers.get("ddim").sample(
        lambda x, level: looks.append(level) or mixture(x, level), start(), VP.levels(10), no_noise
    )
    next(steps)
    next(steps)
    assert len(looks) == 2


def test_cfgpp_puts_the_unguided_noise_back():
    kind = Conditioning(torch.ones(1, 1, 1))
    guide = ClassifierFree(
        lambda x, level, cond: mixture(x, level) + 0.3 * cond.tokens[:, 0],
        kind,
        Conditioning(torch.zeros(1, 1, 1)),
        0.6,
    )
    now, after = VP.level(500), VP.level(300)
    (step,) = samplers.get("ddim_cfgpp").sample(guide, start(), [now, after], no_noise)
    unguided = mixture(start(), now)
    eps = (start() - now.alpha * unguided) / now.sigma
    assert torch.allclose(step.x, after.alpha * (unguided + 0.6 * 0.3) + after.sigma * eps)


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("dpmpp_2m", ("dpmpp_2m", None)),
        ("DPM++ 2M", ("dpmpp_2m", None)),
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("dpm++ 2m sde exponential", ("dpmpp_2m_sde", "exponential")),
        ("Euler a", ("euler_ancestral", None)),
        ("DDIM CFG++", ("ddim_cfgpp", None)),
        ("UniPC SGM Uniform", ("unipc", "sgm_uniform")),
        ("Heun Align Your Steps", ("heun", "align_your_steps")),
        ("ddim_karras", ("ddim", "karras")),
    ],
)
def test_names_of_other_programs(name, means):
    assert samplers.resolve(name) == means


@pytest.mark.parametrize("ask", [samplers.get, samplers.resolve])
def test_unknown_sampler_names_the_nearest_first(ask):
    with pytest.raises(ValueError, match=r"unknown sampler 'dpmp_2m'; .*: dpmpp_2m, "):
        ask("dpmp_2m")


@pytest.mark.parametrize("order", [0, 5])
@pytest.mark.parametrize("name", ["lms", "deis"])
def test_order_out_of_range(name, order):
    with pytest.raises(ValueError, match="1 to 4"):
        last(name, mixture, start(), VP.levels(3), order=order)


@pytest.mark.parametrize("name", samplers.names())
def test_every_sampler_says_what_it_is(name):
    sampler = samplers.get(name)
    assert sampler.doc
    assert sampler.spec.aliases
    assert sampler.spec.order in (None, 1, 2, 3, 4)
    for alias in sampler.spec.aliases:
        assert samplers.resolve(alias) == (name, None)
