"""Noise schedules against published figures, diffusers and scipy."""

import math
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import scipy.stats
import torch

from pellucid.schedule import (
    ALIGN_YOUR_STEPS,
    CLEAN,
    SCHEDULES,
    SPACING_ALIASES,
    SPACINGS,
    Level,
    Schedule,
    beta_quantile,
    spacing_named,
)

# diffusers and not Pellucid: numpy reads a tensor.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SD = Schedule()
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ALL = [Schedule(name) for name in SCHEDULES] + [
    Schedule(name, zero_terminal_snr=True) for name in SCHEDULES if name != "flow"
]


def spacings_of(schedule):
    if schedule.name != "flow":
        return SPACINGS
    return [s for s in SPACINGS if s not in ("leading", "ddim") and not s.startswith("align")]


def test_published_figures():
    assert SD.alphas_cumprod[-1].item() == pytest.approx(0.0046601, abs=5e-8)
    low, high = SD.s_range
    assert low == pytest.approx(0.0291672, abs=5e-8)
    assert high == pytest.approx(14.6146416, abs=2e-6)


def times(levels):
    return [level.t for level in levels]


@pytest.mark.parametrize(
    ("spacing", "wanted"),
    [
        ("leading", list(range(951, 0, -50))),
        ("trailing", list(range(999, 0, -50))),
        ("linspace", [round(999 * i / 19) for i in range(19, -1, -1)]),
        ("uniform", [999 * i / 19 for i in range(19, -1, -1)]),
    ],
)
def test_the_20_timesteps_of_each_convention(spacing, wanted):
    levels = SD.levels(20, spacing)
    assert times(levels[:-1]) == pytest.approx(wanted, abs=1e-9)
    assert levels[-1] == CLEAN


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 30, 50, 999, 1000])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_are_those_of_diffusers(spacing, steps):
    # diffusers adds the offset of 1 even where that leaves the schedule (1000 steps) ...
    offset = 1 if spacing == "leading" and steps < 1000 else 0
    scheduler = diffusers.DDIMScheduler(**BETAS, timestep_spacing=spacing, steps_offset=offset)
    scheduler.set_timesteps(steps)
    wanted = scheduler.timesteps.tolist()
    if spacing == "linspace" and steps == 1:
        wanted = [999]  # ... and starts a run of one step from t = 0, where there is no noise
    assert times(SD.levels(steps, spacing)[:-1]) == wanted


def test_uniform_is_the_linspace_of_the_euler_family():
    """diffusers does not round there, but is linear in sigma where k-diffusion is in log sigma."""
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="linspace")
    scheduler.set_timesteps(20)
    levels = SD.levels(20, "uniform")
    assert times(levels[:-1]) == pytest.approx(scheduler.timesteps.tolist(), abs=1e-3)
    assert [x.s for x in levels] == pytest.approx(scheduler.sigmas.tolist(), rel=1e-4)


@pytest.mark.parametrize(
    ("spacing", "option"),
    [("karras", "use_karras_sigmas"), ("exponential", "use_exponential_sigmas")],
)
def test_ramps_are_those_of_k_diffusion(spacing, option):
    scheduler = diffusers.EulerDiscreteScheduler(
        **BETAS, timestep_spacing="linspace", **{option: True}
    )
    scheduler.set_timesteps(20)
    levels = SD.levels(20, spacing)
    assert [x.s for x in levels] == pytest.approx(
        scheduler.sigmas.tolist(), rel=3e-5
    )  # theirs: float32
    assert times(levels[:-1]) == pytest.approx(scheduler.timesteps.tolist(), abs=2e-3)


def test_karras_formula():
    low, high = SD.s_range
    ramp = [(high ** (1 / 7) + i / 9 * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(10)]
    assert [x.s for x in SD.levels(10, "karras")] == pytest.approx([*ramp, 0.0])


@pytest.mark.parametrize("spacing", ["align_your_steps", "align_your_steps_xl"])
def test_align_your_steps(spacing):
    table = ALIGN_YOUR_STEPS[spacing]
    assert [x.s for x in SD.levels(10, spacing)] == pytest.approx([*table[:-1], 0.0])
    twenty = [x.s for x in SD.levels(20, spacing)]
    assert twenty[0:20:2] == pytest.approx(table[:-1])
    between = [math.sqrt(a * b) for a, b in pairwise(table)]  # the middle, of the logarithms
    assert twenty[1:20:2] == pytest.approx(between)


def test_beta_quantile_is_scipy_s():
    p = np.linspace(0, 1, 301)
    assert np.abs(beta_quantile(p) - scipy.stats.beta.ppf(p, 0.6, 0.6)).max() < 1e-6


def test_beta_in_time():
    """Lee et al. 2024, and ComfyUI, which rounds."""
    wanted = 999 * scipy.stats.beta.ppf(1 - np.arange(12) / 12, 0.6, 0.6)
    assert times(SD.levels(12, "beta_time")[:-1]) == pytest.approx(wanted.tolist(), abs=1e-3)


# --- transcribed from A1111's modules/sd_schedulers.py, of one sigma per whole t ---

SIGMAS = ((1 - SD.alphas_cumprod) / SD.alphas_cumprod).sqrt().tolist()
LOW, HIGH = SIGMAS[0], SIGMAS[-1]


def t_to_sigma(t):
    return math.exp(np.interp(t, range(1000), np.log(SIGMAS)))


def a1111_sgm_uniform(n):
    return [t_to_sigma(t) for t in np.linspace(999, 0, n + 1)[:-1]]


def a1111_normal(n):
    return [t_to_sigma(t) for t in np.linspace(999, 0, n)]


def a1111_simple(n):
    return [SIGMAS[-(1 + int(x * (1000 / n)))] for x in range(n)]


def a1111_kl_optimal(n):  # which ends at the last of these, not at 0
    part = np.arange(n + 1) / n
    return np.tan(part * np.arctan(LOW) + (1 - part) * np.arctan(HIGH)).tolist()


def a1111_beta(n):
    p = [scipy.stats.beta.ppf(x, 0.6, 0.6) for x in 1 - np.linspace(0, 1, n)]
    return [LOW + x * (HIGH - LOW) for x in p]


def a1111_polyexponential(n, rho=1.0):
    ramp = np.linspace(1, 0, n) ** rho
    return np.exp(ramp * (math.log(HIGH) - math.log(LOW)) + math.log(LOW)).tolist()


def a1111_ddim(n):
    return [SIGMAS[x] for x in range(1, 1000, max(1000 // n, 1))][::-1]


@pytest.mark.parametrize("steps", [1, 5, 20, 40])
@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("Uniform", a1111_normal),
        ("Normal", a1111_normal),
        ("SGM Uniform", a1111_sgm_uniform),
        ("Simple", a1111_simple),
        ("Beta", a1111_beta),
        ("Polyexponential", a1111_polyexponential),
        ("Exponential", a1111_polyexponential),
        ("ddim_uniform", a1111_ddim),
        ("DDIM", a1111_ddim),
    ],
)
def test_spacings_are_those_of_a1111(name, formula, steps):
    assert [x.s for x in SD.levels(steps, name)] == pytest.approx([*formula(steps), 0], rel=2e-6)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_kl_optimal_is_a1111_s(steps):
    """A1111 ends at the schedule's least sigma, as `final="first"` does."""
    ours = SD.levels(steps, "kl_optimal", final="first")
    assert [x.s for x in ours] == pytest.approx(a1111_kl_optimal(steps))
    assert SD.levels(steps, "kl_optimal")[:-1] == ours[:-1]


@pytest.mark.parametrize("steps", [2, 12, 20])
def test_beta_is_diffusers(steps):
    scheduler = diffusers.EulerDiscreteScheduler(
        **BETAS, timestep_spacing="linspace", use_beta_sigmas=True
    )
    scheduler.set_timesteps(steps)
    wanted = scheduler.sigmas.tolist()
    assert [x.s for x in SD.levels(steps, "beta")] == pytest.approx(wanted, rel=3e-5)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
def test_lcm_is_diffusers(steps):
    scheduler = diffusers.LCMScheduler(**BETAS)
    scheduler.set_timesteps(steps)
    assert times(SD.levels(steps, "lcm")[:-1]) == scheduler.timesteps.tolist()


def test_names_of_spacings():
    assert {spacing_named(name) for name in SPACING_ALIASES} <= set(SPACINGS)
    assert all(spacing_named(name) == name for name in SPACINGS)
    assert spacing_named("Align Your Steps") == "align_your_steps"
    assert SD.levels(7, "Karras") == SD.levels(7, "karras")


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_final_first_repeats_nothing(spacing, steps, skip):
    levels = SD.levels(steps, spacing, final="first", skip_penultimate=skip)
    assert len(levels) == steps + 1
    assert levels[-1] == SD.level(0)
    assert all(a.s > b.s for a, b in pairwise(levels))


@pytest.mark.parametrize("final", ["clean", "first"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_skip_penultimate_leaves_out_one_of_a_longer_run(spacing, final):
    longer = SD.levels(10, spacing, final)
    assert SD.levels(9, spacing, final, skip_penultimate=True) == [*longer[:-2], longer[-1]]


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_final_first_wants_a_step_in_front_of_t_0(spacing):
    with pytest.raises(ValueError, match=r"steps is 1000; .* reaches t = 0 before its last step"):
        SD.levels(1000, spacing, final="first")


def test_bounds_of_steps_with_one_more():
    assert len(SD.levels(999, "leading", skip_penultimate=True)) == 1000
    assert len(SD.levels(1000, "karras", skip_penultimate=True)) == 1001
    with pytest.raises(ValueError, match="steps must be a whole number from 1 to 999, got 1000"):
        SD.levels(1000, "leading", skip_penultimate=True)
    with pytest.raises(ValueError, match="steps must be a whole number from 1 to 50, got 51"):
        SD.levels(51, "lcm")


@pytest.mark.parametrize("schedule", [SD, Schedule("flow"), Schedule(zero_terminal_snr=True)])
def test_a_level_knows_its_schedule(schedule):
    for level in schedule.levels(6, "karras")[:-1]:
        between = level.at(1.5)
        assert between == schedule.level_at_s(1.5)
        assert between.at(0.3) == schedule.level_at_s(0.3)
    with pytest.raises(ValueError, match="belongs to no schedule"):
        Level(0.6, 0.8, 3.0).at(1.0)


def test_products_are_a_copy():
    before = SD.level(500)
    SD.alphas_cumprod.fill_(0.5)
    assert SD.level(500) == before and SD.alphas_cumprod[-1].item() < 0.005


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        (Schedule("linear", beta_start=1e-4, beta_end=0.02), "linear"),
        (Schedule("scaled_linear", beta_start=1e-4, beta_end=0.02), "scaled_linear"),
        (Schedule("cosine"), "squaredcos_cap_v2"),
    ],
)
@pytest.mark.parametrize("zero", [False, True])
def test_products_are_those_of_diffusers(schedule, name, zero):
    schedule = Schedule(
        schedule.name,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        zero_terminal_snr=zero,
    )
    theirs = diffusers.DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule=name, rescale_betas_zero_snr=zero
    )
    ours = schedule.alphas_cumprod
    assert ours.shape == (1000,) and ours.dtype == torch.float64
    assert torch.allclose(ours.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)


def test_sigmoid_and_laplace():
    """Both are symmetric in the middle of time, where there is as much picture as noise."""
    for name in ("sigmoid", "laplace"):
        products = Schedule(name).alphas_cumprod
        assert products[499].item() == pytest.approx(0.5, abs=0.03)
        assert (products.diff() < 0).all()
    laplace = Schedule("laplace").alphas_cumprod
    log_snr = torch.log(laplace / (1 - laplace))
    assert log_snr.abs().mean().item() == pytest.approx(0.5, abs=0.01)  # the scale b


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "flow"])
def test_zero_terminal_snr(name):
    plain, zero = Schedule(name), Schedule(name, zero_terminal_snr=True)
    assert zero.alphas_cumprod[-1] == 0
    assert torch.isclose(zero.alphas_cumprod[0], plain.alphas_cumprod[0])
    end = zero.level(999)
    assert (end.alpha, end.sigma, end.half_log_snr, end.s) == (0.0, 1.0, -math.inf, math.inf)
    before = zero.level(998.5)
    assert 0 < before.alpha < zero.level(998).alpha


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: f"{s.name}-{s.zero_terminal_snr}")
def test_levels_fall_from_the_noisiest_to_clean(schedule):
    for spacing in spacings_of(schedule):
        for steps in (1, 2, 10, 50):
            levels = schedule.levels(steps, spacing)
            assert len(levels) == steps + 1
            assert levels[-1] == CLEAN == Level(1, 0, 0)
            ratios = [level.s for level in levels]
            assert all(a > b for a, b in pairwise(ratios)), (spacing, steps)
            top = schedule.T if schedule.name == "flow" else schedule.T - 1
            if spacing not in ("leading", "ddim") and not spacing.startswith("align"):
                assert levels[0] == schedule.level(top)
            assert all(0 <= level.t <= top for level in levels)


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: f"{s.name}-{s.zero_terminal_snr}")
def test_alpha_and_sigma_agree_with_each_other_and_with_level(schedule):
    t = torch.tensor([0.0, 0.5, 1.0, 250.25, 600.0, 998.0, 998.75, 999.0], dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    if schedule.name == "flow":
        assert torch.allclose(alpha + sigma, torch.ones_like(t))
    else:
        assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(t))
        whole = schedule.alphas_cumprod[[0, 1, 600, 998, 999]]
        assert torch.allclose(alpha[[0, 2, 4, 5, 7]] ** 2, whole, rtol=1e-10)
    for at, a, s in zip(t.tolist(), alpha.tolist(), sigma.tolist(), strict=True):
        level = schedule.level(at)
        assert (level.alpha, level.sigma, level.t) == (a, s, at)
        if 0 < at < 999:
            back = schedule.level_at_s(level.s)
            assert back.t == pytest.approx(at, abs=1e-6)
            assert back.alpha == pytest.approx(a)


def test_alpha_sigma_dtypes_and_clamping():
    for t in (torch.tensor([0, 999]), torch.tensor([-5.0, 5000.0])):
        alpha, sigma = SD.alpha_sigma(t)
        assert alpha.dtype == sigma.dtype == torch.float32
        assert alpha.square()[1].item() == pytest.approx(0.0046601, abs=1e-6)


def test_flow_is_a_straight_line():
    levels = Schedule("flow").levels(4, "uniform")
    assert [(x.alpha, x.sigma, x.t) for x in levels] == [
        (0.0, 1.0, 1000.0),
        (0.25, 0.75, 750.0),
        (0.5, 0.5, 500.0),
        (0.75, 0.25, 250.0),
        (1.0, 0.0, 0.0),
    ]


@pytest.mark.parametrize("steps", [1, 12, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_linspace_is_diffusers_flow_match(shift, steps):
    """Stable Diffusion 3 has shift 3; its end is shifted twice there."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    levels = Schedule("flow", shift=shift).levels(steps, "linspace")
    assert [x.sigma for x in levels] == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)
    assert times(levels[:-1]) == pytest.approx(scheduler.timesteps.tolist(), abs=1e-3)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_uniform_is_diffusers_flow_match_of_even_sigmas(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 12, 12))
    for spacing in ("uniform", "trailing", "sgm_uniform"):
        levels = Schedule("flow", shift=shift).levels(12, spacing)
        assert [x.sigma for x in levels] == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


@pytest.mark.parametrize("spacing", [s for s in spacings_of(Schedule("flow")) if s != "linspace"])
def test_shift_multiplies_sigma_over_alpha(spacing):
    plain = Schedule("flow").levels(8, spacing)
    shifted = Schedule("flow", shift=2.5).levels(8, spacing)
    assert plain[0] == shifted[0] and plain[-1] == shifted[-1]
    assert [x.s for x in shifted] == pytest.approx([2.5 * x.s for x in plain])


def test_final_first_keeps_the_noise_of_t_0():
    last = SD.levels(20, "leading", final="first")[-1]
    assert last.alpha**2 == pytest.approx(1 - 0.00085)
    assert last.t == 0


@pytest.mark.parametrize("steps", [0, -1, 1001, 10**6, 2.5, True])
@pytest.mark.parametrize("spacing", ["leading", "karras"])
def test_steps_out_of_range(steps, spacing):
    with pytest.raises(ValueError, match="steps must be a whole number from 1 to 1000"):
        SD.levels(steps, spacing)


def test_rounded_times_bound_the_steps_by_T():
    short = Schedule("cosine", T=50)
    assert times(short.levels(50, "leading")) == [*range(49, -1, -1), 0]
    assert len(short.levels(60, "karras")) == 61
    with pytest.raises(ValueError, match="from 1 to 50"):
        short.levels(51, "trailing")


@pytest.mark.parametrize("spacing", ["leading", "ddim", "align_your_steps", "align_your_steps_xl"])
def test_flow_refuses_what_does_not_reach_pure_noise(spacing):
    with pytest.raises(ValueError, match="does not reach pure noise"):
        Schedule("flow").levels(10, spacing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "scaled_liner"}, "unknown schedule 'scaled_liner'; .*: scaled_linear, linear"),
        ({"T": 1}, "at least 2"),
        ({"beta_start": 0.0}, "0 < beta_start"),
        ({"beta_start": 0.02}, "0 < beta_start"),
        ({"beta_end": math.nan}, "0 < beta_start"),
        ({"shift": 2.0}, "for the schedule 'flow'"),
        ({"name": "flow", "shift": 0.0}, "positive"),
        ({"name": "flow", "shift": math.nan}, "positive"),
    ],
)
def test_a_schedule_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**options)


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match=r"unknown spacing 'karas'; .*: karras"):
        SD.levels(10, "karas")
    with pytest.raises(ValueError, match="unknown final level"):
        SD.levels(10, "karras", final="one")
    with pytest.raises(ValueError, match="0 to 999"):
        SD.level(999.5)
    with pytest.raises(ValueError, match="not be negative"):
        SD.level_at_s(-1)
    with pytest.raises(ValueError, match="not be negative"):
        SD.level_at_s(math.nan)
    with pytest.raises(ValueError, match="alphas_cumprod"):
        _ = Schedule("flow").alphas_cumprod


def test_level_at_s_ends():
    assert SD.level_at_s(0) == CLEAN
    assert SD.level_at_s(math.inf) == Level(0.0, 1.0, 999.0)
    assert Schedule("flow").level_at_s(math.inf) == Level(0.0, 1.0, 1000.0)
    assert SD.level_at_s(100).t == 999
    assert SD.level_at_s(100).s == pytest.approx(100)
