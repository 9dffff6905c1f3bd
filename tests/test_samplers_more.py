"""The solvers of k-diffusion and A1111, transcribed in their own coordinates, and of diffusers.

In the transcriptions x is k-diffusion's, x / alpha here, and sigma is sigma / alpha.
"""

import math
from itertools import pairwise

import diffusers
import pytest
import torch

from pellucid import samplers
from pellucid.samplers import dpm_adaptive
from pellucid.samplers.dpm_fast import solve
from pellucid.schedule import CLEAN, SPACINGS, Level, Schedule
from test_samplers import (
    BETAS,
    FLOW,
    NOTHING,
    VP,
    ZERO_SNR,
    Tiny,
    assert_same,
    even_in_log_snr,
    far_end,
    fresh,
    last,
    mixture,
    no_noise,
    noisy_start,
    run_pellucid,
    runge_kutta,
    start,
)

# diffusers and not Pellucid: numpy reads a tensor, and makes one.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


# --- transcribed from k_diffusion/sampling.py and A1111's modules/sd_samplers_extra.py ------------


def get_ancestral_step(sigma_from, sigma_to, eta=1.0):
    if not eta:
        return sigma_to, 0.0
    up = min(sigma_to, eta * (sigma_to**2 * (sigma_from**2 - sigma_to**2) / sigma_from**2) ** 0.5)
    return (sigma_to**2 - up**2) ** 0.5, up


def to_d(x, sigma, denoised):
    return (x - denoised) / sigma


def sample_dpm_2(model, x, sigmas, noise):
    for sigma, to in pairwise(sigmas):
        d = to_d(x, sigma, model(x, sigma))
        if to == 0:
            x = x + d * (to - sigma)
        else:
            mid = math.exp((math.log(sigma) + math.log(to)) / 2)
            d_2 = to_d(x + d * (mid - sigma), mid, model(x + d * (mid - sigma), mid))
            x = x + d_2 * (to - sigma)
    return x


def sample_dpm_2_ancestral(model, x, sigmas, noise, eta=1.0):
    for sigma, to in pairwise(sigmas):
        down, up = get_ancestral_step(sigma, to, eta)
        d = to_d(x, sigma, model(x, sigma))
        if down == 0:
            x = x + d * (down - sigma)
        else:
            mid = math.exp((math.log(sigma) + math.log(down)) / 2)
            x_2 = x + d * (mid - sigma)
            x = x + to_d(x_2, mid, model(x_2, mid)) * (down - sigma) + noise(x) * up
    return x


def sample_dpmpp_2s_ancestral(model, x, sigmas, noise, eta=1.0):
    for sigma, to in pairwise(sigmas):
        denoised = model(x, sigma)
        down, up = get_ancestral_step(sigma, to, eta)
        if down == 0:
            x = x + to_d(x, sigma, denoised) * (down - sigma)
        else:
            t, t_next, r = -math.log(sigma), -math.log(down), 1 / 2
            h = t_next - t
            s = t + r * h
            x_2 = (math.exp(-s) / math.exp(-t)) * x - math.expm1(-h * r) * denoised
            denoised_2 = model(x_2, math.exp(-s))
            x = (math.exp(-t_next) / math.exp(-t)) * x - math.expm1(-h) * denoised_2
        if to > 0:
            x = x + noise(x) * up
    return x


def sample_dpmpp_sde(model, x, sigmas, noise, eta=1.0):
    r = 1 / 2
    for sigma, to in pairwise(sigmas):
        denoised = model(x, sigma)
        if to == 0:
            x = x + to_d(x, sigma, denoised) * (to - sigma)
            continue
        t, t_next = -math.log(sigma), -math.log(to)
        h = t_next - t
        s, fac = t + h * r, 1 / (2 * r)
        mid = math.exp(-s)
        # The Brownian path over sigma .. mid and mid .. to, made as the difference of its values.
        first = noise(x) * (sigma - mid) ** 0.5 if eta else 0 * x
        second = noise(x) * (mid - to) ** 0.5 if eta else 0 * x
        sd, su = get_ancestral_step(sigma, mid, eta)
        s_ = -math.log(sd)
        x_2 = (math.exp(-s_) / sigma) * x - math.expm1(t - s_) * denoised
        x_2 = x_2 + first / (sigma - mid) ** 0.5 * su
        denoised_2 = model(x_2, mid)
        sd, su = get_ancestral_step(sigma, to, eta)
        t_next_ = -math.log(sd)
        denoised_d = (1 - fac) * denoised + fac * denoised_2
        x = (math.exp(-t_next_) / sigma) * x - math.expm1(t - t_next_) * denoised_d
        x = x + (first + second) / (sigma - to) ** 0.5 * su
    return x


def sample_dpmpp_2m_sde_heun(model, x, sigmas, noise, eta=1.0):
    old_denoised, h_last = None, None
    for sigma, to in pairwise(sigmas):
        denoised = model(x, sigma)
        if to == 0:
            x = denoised
            continue
        h = math.log(sigma) - math.log(to)
        eta_h = eta * h
        x = to / sigma * math.exp(-eta_h) * x - math.expm1(-h - eta_h) * denoised
        if old_denoised is not None:
            r = h_last / h
            factor = -math.expm1(-h - eta_h) / (-h - eta_h) + 1
            x = x + factor * (1 / r) * (denoised - old_denoised)
        if eta:
            x = x + noise(x) * to * (-math.expm1(-2 * eta_h)) ** 0.5
        old_denoised, h_last = denoised, h
    return x


def sample_dpmpp_3m_sde(model, x, sigmas, noise, eta=1.0):
    denoised_1 = denoised_2 = h_1 = h_2 = None
    for sigma, to in pairwise(sigmas):
        denoised = model(x, sigma)
        if to == 0:
            x = denoised
            continue
        h = math.log(sigma) - math.log(to)
        h_eta = h * (eta + 1)
        x = math.exp(-h_eta) * x - math.expm1(-h_eta) * denoised
        if h_2 is not None:
            r0, r1 = h_1 / h, h_2 / h
            d1_0, d1_1 = (denoised - denoised_1) / r0, (denoised_1 - denoised_2) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            d2 = (d1_0 - d1_1) / (r0 + r1)
            phi_2 = math.expm1(-h_eta) / h_eta + 1
            phi_3 = phi_2 / h_eta - 0.5
            x = x + phi_2 * d1 - phi_3 * d2
        elif h_1 is not None:
            x = x + (math.expm1(-h_eta) / h_eta + 1) * (denoised - denoised_1) / (h_1 / h)
        if eta:
            x = x + noise(x) * to * (-math.expm1(-2 * h * eta)) ** 0.5
        denoised_1, denoised_2, h_1, h_2 = denoised, denoised_1, h, h_1
    return x


def get_sigmas_karras(n, sigma_min, sigma_max, rho=7.0):
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return [*((high + i / (n - 1) * (low - high)) ** rho for i in range(n)), 0.0]


def restart_sampler(model, x, sigmas, noise):
    def heun_step(x, old, new):
        d = to_d(x, old, model(x, old))
        if new == 0:
            return x + d * (new - old)
        x_2 = x + d * (new - old)
        return x + (d + to_d(x_2, new, model(x_2, new))) / 2 * (new - old)

    steps, restart_list = len(sigmas) - 1, {}
    if steps >= 20:
        restart_steps, restart_times = 9, 1
        if steps >= 36:
            restart_steps, restart_times = steps // 4, 2
        sigmas = get_sigmas_karras(steps - restart_steps * restart_times, sigmas[-2], sigmas[0])
        restart_list = {0.1: [restart_steps + 1, restart_times, 2]}

    def nearest(key):
        return min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - key))

    restart_list = {nearest(key): value for key, value in restart_list.items()}
    step_list = []
    for i in range(len(sigmas) - 1):
        step_list.append((sigmas[i], sigmas[i + 1]))
        if i + 1 in restart_list:
            restart_steps, restart_times, restart_max = restart_list[i + 1]
            min_idx, max_idx = i + 1, nearest(restart_max)
            if max_idx < min_idx:
                again = get_sigmas_karras(restart_steps, sigmas[min_idx], sigmas[max_idx])[:-1]
                for _ in range(restart_times):
                    step_list.extend(pairwise(again))
    last_sigma = None
    for old, new in step_list:
        if last_sigma is not None and last_sigma < old:
            x = x + noise(x) * (old**2 - last_sigma**2) ** 0.5
        x = heun_step(x, old, new)
        last_sigma = new
    return x


class DPMSolver:
    """In t = -log sigma; eps of a level is remembered by its name."""

    def __init__(self, model):
        self.model = model

    def eps(self, cache, key, x, t):
        if key not in cache:
            cache[key] = to_d(x, math.exp(-t), self.model(x, math.exp(-t)))
        return cache[key]

    def step_1(self, x, t, t_next, cache):
        return x - math.exp(-t_next) * math.expm1(t_next - t) * self.eps(cache, "eps", x, t)

    def step_2(self, x, t, t_next, cache, r1=1 / 2):
        h, eps = t_next - t, self.eps(cache, "eps", x, t)
        s1 = t + r1 * h
        u1 = x - math.exp(-s1) * math.expm1(r1 * h) * eps
        eps_r1 = self.eps(cache, "eps_r1", u1, s1)
        out = x - math.exp(-t_next) * math.expm1(h) * eps
        return out - math.exp(-t_next) / (2 * r1) * math.expm1(h) * (eps_r1 - eps)

    def step_3(self, x, t, t_next, cache, r1=1 / 3, r2=2 / 3):
        h, eps = t_next - t, self.eps(cache, "eps", x, t)
        s1, s2 = t + r1 * h, t + r2 * h
        u1 = x - math.exp(-s1) * math.expm1(r1 * h) * eps
        eps_r1 = self.eps(cache, "eps_r1", u1, s1)
        u2 = x - math.exp(-s2) * math.expm1(r2 * h) * eps
        u2 = u2 - math.exp(-s2) * (r2 / r1) * (math.expm1(r2 * h) / (r2 * h) - 1) * (eps_r1 - eps)
        eps_r2 = self.eps(cache, "eps_r2", u2, s2)
        out = x - math.exp(-t_next) * math.expm1(h) * eps
        return out - math.exp(-t_next) / r2 * (math.expm1(h) / h - 1) * (eps_r2 - eps)


def down_and_up(t, t_next, t_end, eta):
    sd, _ = get_ancestral_step(math.exp(-t), math.exp(-t_next), eta)
    t_next_ = min(t_end, -math.log(sd))
    return t_next_, max(math.exp(-2 * t_next) - math.exp(-2 * t_next_), 0) ** 0.5


def sample_dpm_fast(model, x, sigmas, noise, eta=1.0):
    solver, nfe = DPMSolver(model), len(sigmas) - 1
    t_start, t_end = -math.log(sigmas[0]), -math.log(sigmas[-1])
    m = math.floor(nfe / 3) + 1
    orders = [3] * (m - 2) + [2, 1] if nfe % 3 == 0 else [3] * (m - 1) + [nfe % 3]
    ts = [t_start + i / m * (t_end - t_start) for i in range(m + 1)]
    for order, (t, t_next) in zip(orders, pairwise(ts), strict=True):
        t_next_, su = down_and_up(t, t_next, t_end, eta)
        x = getattr(solver, f"step_{order}")(x, t, t_next_, {})
        if su > 1e-7:  # noise is not drawn here where none is added
            x = x + su * noise(x)
    return x


def sample_dpm_adaptive(model, x, sigmas, noise, eta=1.0, rtol=0.05, atol=0.0078):
    solver, t_end = DPMSolver(model), -math.log(sigmas[-1])
    s, x_prev, h = -math.log(sigmas[0]), x, 0.05
    while s < t_end - 1e-5:
        cache = {}
        t = min(t_end, s + h)
        t_, su = down_and_up(s, t, t_end, eta)
        x_low = solver.step_2(x, s, t_, cache, r1=1 / 3)
        x_high = solver.step_3(x, s, t_, cache)
        delta = torch.maximum(torch.tensor(atol), rtol * torch.maximum(x_low.abs(), x_prev.abs()))
        error = torch.linalg.norm((x_low - x_high) / delta) / x.numel() ** 0.5
        factor = 1 + math.atan((1 / (float(error) + 1e-8)) ** (1 / (1.5 if eta else 3)) - 1)
        if factor >= 0.81:
            x_prev = x_low
            x = x_high + su * noise(x_high) if su > 1e-7 else x_high
            s = t
        h *= factor
    return x


K_DIFFUSION = {
    "dpm2": sample_dpm_2,
    "dpm2_ancestral": sample_dpm_2_ancestral,
    "dpmpp_2s_ancestral": sample_dpmpp_2s_ancestral,
    "dpmpp_sde": sample_dpmpp_sde,
    "dpmpp_2m_sde_heun": sample_dpmpp_2m_sde_heun,
    "dpmpp_3m_sde": sample_dpmpp_3m_sde,
    "restart": restart_sampler,
    "dpm_fast": sample_dpm_fast,
    "dpm_adaptive": sample_dpm_adaptive,
}
TO_THE_END = ("dpm_fast", "dpm_adaptive")  # of sigma_min: A1111 leaves that noise


def in_karras_coordinates(sample, levels, **options):
    """The transcription, on the mixture: it gives y = x / alpha."""

    def model(y, sigma):
        level = VP.level_at_s(sigma)
        return mixture(level.alpha * y, level)

    first = start() / levels[0].alpha
    return sample(model, first, [level.s for level in levels], fresh(), **options)


@pytest.mark.parametrize("spacing", ["karras", "uniform"])
@pytest.mark.parametrize("steps", [5, 12, 21, 40])
@pytest.mark.parametrize("name", K_DIFFUSION)
def test_is_k_diffusion(name, steps, spacing):
    levels = VP.levels(steps, spacing, final="first" if name in TO_THE_END else "clean")
    theirs = in_karras_coordinates(K_DIFFUSION[name], levels)
    noise = no_noise if name in ("dpm2",) else fresh()
    ours = last(name, mixture, start(), levels, noise) / levels[-1].alpha
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5), (ours - theirs).abs().max()


ETA = sorted(K_DIFFUSION.keys() - {"dpm2", "restart"})


@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("name", ETA)
def test_is_k_diffusion_at_every_eta(name, eta):
    levels = VP.levels(14, "karras", final="first" if name in TO_THE_END else "clean")
    theirs = in_karras_coordinates(K_DIFFUSION[name], levels, eta=eta)
    noise = fresh() if eta > 0 else no_noise
    ours = last(name, mixture, start(), levels, noise, eta=eta) / levels[-1].alpha
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5), (ours - theirs).abs().max()


# --- diffusers -----------------------------------------------------------------------------------


def run_diffusers(scheduler, steps, scale, times=None):
    """As in test_samplers; times: those that the network is told, where diffusers rounds them."""
    scheduler.set_timesteps(steps)
    network, x = Tiny(), noisy_start() * scale
    generator = torch.Generator().manual_seed(1)
    takes_generator = "generator" in scheduler.step.__code__.co_varnames
    for i, t in enumerate(scheduler.timesteps):
        told = t.float() if times is None else torch.tensor(times[i])
        output = network(scheduler.scale_model_input(x, t), told, NOTHING)
        options = {"generator": generator} if takes_generator else {}
        x = scheduler.step(output, t, x, return_dict=False, **options)[0]
    return x


@pytest.mark.parametrize("kind", ["", "Ancestral"])
def test_dpm2_is_diffusers(kind):
    scheduler = getattr(diffusers, f"KDPM2{kind}DiscreteScheduler")(
        **BETAS, timestep_spacing="trailing"
    )
    levels = VP.levels(10, "trailing")
    theirs = run_diffusers(scheduler, 10, 1 / levels[0].alpha)
    ours = run_pellucid("dpm2_ancestral", levels, fresh()) if kind else run_pellucid("dpm2", levels)
    assert_same(ours, theirs)


@pytest.mark.parametrize("steps", [3, 10, 20])
def test_plms_is_diffusers(steps):
    scheduler = diffusers.PNDMScheduler(
        **BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1
    )
    theirs = run_diffusers(scheduler, steps, 1)
    # diffusers' last step goes from t = 1 to before t = 0, which is the first level there.
    assert_same(run_pellucid("plms", VP.levels(steps, "leading", "first")), theirs)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_is_diffusers(order):
    scheduler = diffusers.DEISMultistepScheduler(**BETAS, solver_order=order)
    scheduler.set_timesteps(16)  # below 15 it lowers the order at the end
    levels = [VP.level(float(t)) for t in scheduler.timesteps] + [VP.level(0)]
    # Its integrals are differences of great numbers, too coarse in float32.
    scheduler.sigmas = scheduler.sigmas.double()
    scheduler.set_timesteps = lambda steps: None
    assert_same(run_pellucid("deis", levels, order=order), run_diffusers(scheduler, 16, 1))


@pytest.mark.parametrize("steps", [1, 2, 3, 14, 15, 30])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_deis_as_it_comes_is_diffusers(spacing, steps):
    """Its levels, its end and its order, which falls at the end of a short run."""
    scheduler = diffusers.DEISMultistepScheduler(**BETAS, timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(steps)
    levels = samplers.levels_for("deis", VP, steps, spacing)
    assert [level.t for level in levels] == [*scheduler.timesteps.tolist(), 0]
    scheduler.sigmas = scheduler.sigmas.double()
    scheduler.set_timesteps = lambda steps: None
    assert_same(run_pellucid("deis", levels), run_diffusers(scheduler, steps, 1))


@pytest.mark.parametrize("steps", [1, 7, 20, 30, 400])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "unipc"])
def test_multistep_solvers_have_the_times_of_diffusers(name, spacing, steps):
    kind = "UniPC" if name == "unipc" else "DPMSolver"
    scheduler = getattr(diffusers, f"{kind}MultistepScheduler")(
        **BETAS, timestep_spacing=spacing, steps_offset=1
    )
    scheduler.set_timesteps(steps)
    levels = samplers.levels_for(name, VP, steps, spacing)
    assert [level.t for level in levels] == [*scheduler.timesteps.tolist(), 0]
    assert levels[-1] == CLEAN


@pytest.mark.parametrize("steps", [10, 20, 25])
def test_ddim_of_a1111_is_the_same_for_all_samplers(steps):
    """A1111's and ComfyUI's own words: the sigmas from the second on, each 1000 // steps."""
    s = [VP.level(t).s for t in range(1, 1000, 1000 // steps)][::-1]
    for name in ("euler", "dpmpp_2m", "unipc", "deis"):
        for asked in ("ddim", "DDIM", "ddim_uniform"):
            assert [x.s for x in samplers.levels_for(name, VP, steps, asked)] == [*s, 0]
    for name in ("ddim", "ddim_cfgpp", "plms"):  # which have times of their own there
        own = samplers.levels_for(name, VP, steps, "leading")
        assert samplers.levels_for(name, VP, steps, "ddim") == own
        assert [x.s for x in own[:-1]] == s and own[-1] == VP.level(0)


def test_dpmpp_2s_is_diffusers():
    """diffusers counts looks: every second of its levels is one of ours, the others lie between."""
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        **BETAS,
        solver_order=2,
        final_sigmas_type="sigma_min",
        algorithm_type="dpmsolver++",
        use_exponential_sigmas=True,
    )
    scheduler.set_timesteps(20)
    s = scheduler.sigmas.double().tolist()
    theirs = run_diffusers(scheduler, 20, 1, [VP.level_at_s(at).t for at in s])
    levels = [VP.level_at_s(at) for at in s[::2]]
    assert_same(run_pellucid("dpmpp_2s_ancestral", levels, eta=0), theirs)


# --- orders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("dpm2_ancestral", 2),
        ("dpmpp_2s_ancestral", 2),
        ("dpmpp_sde", 2),
        ("dpmpp_2m_sde_heun", 2),
        ("dpmpp_3m_sde", 2),
    ],
)
def test_order_without_noise(name, order):
    errors = [
        (last(name, mixture, start(), even_in_log_snr(n), no_noise, eta=0) - far_end()).norm()
        for n in (80, 160)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_s_local_error(order):
    """A single step of order k is off by h^(k+1)."""

    def error(h):
        now = VP.level_at_s(1.0)
        fine = [now.at(math.exp(-h * i / 40)) for i in range(41)]
        *_, step = solve(mixture, start(), now, fine[-1], order)
        return (step.x - runge_kutta(start(), fine)).norm().item()

    assert math.log2(error(0.1) / error(0.05)) == pytest.approx(order + 1, abs=0.2)


def test_adaptive_takes_more_looks_for_less_error():
    levels, found = VP.levels(10, "karras", "first"), []
    exact = last("heun", mixture, start(), VP.levels(1000, "exponential", "first"))
    for rtol in (0.2, 0.02, 0.002):
        looks = []

        def denoise(x, level, looks=looks):
            looks.append(level)
            return mixture(x, level)

        options = {"eta": 0, "rtol": rtol, "atol": rtol / 10}
        end = last("dpm_adaptive", denoise, start(), levels, no_noise, **options)
        found.append((len(looks), (end - exact).norm().item()))
    (few, worst), (more, better), (most, best) = found
    assert few < more < most and worst > better > best and best < 0.01


def test_adaptive_says_where_it_is_when_it_has_passed_a_level():
    levels = VP.levels(50, "karras")
    out = list(samplers.get("dpm_adaptive").sample(mixture, start(), levels, fresh()))
    assert len(out) == 50
    assert all(step.level.s <= level.s for step, level in zip(out, levels[1:], strict=True))
    assert len({step.level.s for step in out}) > 10


@pytest.mark.parametrize("above", [1e-7, 5e-6, 2e-5])
def test_adaptive_ends_when_a_step_lands_just_above_the_last_level(above):
    """The first step goes to s exp(-h), and the last level is just below that."""
    s, h = 10.0, dpm_adaptive.FIRST_H
    levels = [
        VP.level_at_s(each) for each in (s, s * math.exp(-h / 2), s * math.exp(-h) * (1 - above))
    ]
    out = list(samplers.get("dpm_adaptive").sample(mixture, start(), levels, fresh()))
    assert len(out) == 2 and out[-1].level == levels[-1]


def test_adaptive_ends_when_every_look_is_broken():
    out = list(
        samplers.get("dpm_adaptive").sample(
            lambda x, level: x * math.nan, start(), VP.levels(5, "karras"), fresh()
        )
    )
    assert out[-1].level == CLEAN and out[-1].x.isnan().all()


@pytest.mark.parametrize("schedule", [VP, ZERO_SNR, FLOW], ids=["vp", "zero_snr", "flow"])
@pytest.mark.parametrize("steps", [20, 37, 50])
def test_restart_has_the_steps_that_were_asked_for(steps, schedule):
    levels = schedule.levels(steps, "karras")
    out = list(samplers.get("restart").sample(mixture, start(), levels, fresh()))
    assert len(out) == steps and out[-1].level == CLEAN
    ups = [(a.level, b.level) for a, b in pairwise(out) if b.level.s > a.level.s]
    assert len(ups) == (2 if steps >= 36 else 1)
    for low, _ in ups:
        assert 0.04 < low.s < 0.25


@pytest.mark.parametrize(("first", "goes_up"), [(0.09, False), (0.6, True)])
def test_restart_goes_no_further_up_than_the_run_began(first, goes_up):
    """As from a picture with little strength."""
    levels = [*(VP.level_at_s(first * 0.95**i) for i in range(30)), CLEAN]
    out = list(samplers.get("restart").sample(mixture, start() * 0.3, levels, fresh()))
    assert len(out) == 30
    assert max(step.level.s for step in out) < first
    assert any(b.level.s > a.level.s for a, b in pairwise(out)) == goes_up


# --- levels and names ----------------------------------------------------------------------------

# A1111's modules/sd_samplers_kdiffusion.py and sd_samplers_timesteps.py: what "Automatic" means,
# and discard_next_to_last_sigma. Of LCM, whose levels are its own there, diffusers'.
A1111 = {
    "DPM++ 2M": ("dpmpp_2m", "karras", False),
    "DPM++ SDE": ("dpmpp_sde", "karras", False),
    "DPM++ 2M SDE": ("dpmpp_2m_sde", "exponential", False),
    "DPM++ 2M SDE Heun": ("dpmpp_2m_sde_heun", "exponential", False),
    "DPM++ 2S a": ("dpmpp_2s_ancestral", "karras", False),
    "DPM++ 3M SDE": ("dpmpp_3m_sde", "exponential", True),
    "Euler a": ("euler_ancestral", "uniform", False),
    "Euler": ("euler", "uniform", False),
    "LMS": ("lms", "uniform", False),
    "Heun": ("heun", "uniform", False),
    "DPM2": ("dpm2", "karras", True),
    "DPM2 a": ("dpm2_ancestral", "karras", True),
    "DPM fast": ("dpm_fast", "uniform", False),
    "DPM adaptive": ("dpm_adaptive", "uniform", False),
    "Restart": ("restart", "karras", False),
    "DDIM": ("ddim", "leading", False),
    "DDIM CFG++": ("ddim_cfgpp", "leading", False),
    "PLMS": ("plms", "leading", False),
    "UniPC": ("unipc", "uniform", False),
    "LCM": ("lcm", "lcm", False),
}
A1111_SPACINGS = {
    "Automatic": "automatic",
    "Uniform": "uniform",
    "Karras": "karras",
    "Exponential": "exponential",
    "Polyexponential": "exponential",
    "SGM Uniform": "sgm_uniform",
    "KL Optimal": "kl_optimal",
    "Align Your Steps": "align_your_steps",
    "Simple": "simple",
    "Normal": "uniform",
    "DDIM": "ddim",
    "Beta": "beta",
}


@pytest.mark.parametrize("label", A1111)
def test_every_sampler_of_a1111_is_known(label):
    name, spacing, skips = A1111[label]
    assert samplers.resolve(label) == samplers.resolve(label.lower()) == (name, None)
    for suffix, means in A1111_SPACINGS.items():
        assert samplers.resolve(f"{label} {suffix}") == (name, means)
        own = suffix == "Automatic" or (suffix == "DDIM" and spacing == "leading")
        assert samplers.spacing_of(name, suffix, VP) == (spacing if own else means)
    levels = samplers.levels_for(name, VP, 12)
    # The original DDIM and PLMS end at t = 0, which still has a little noise.
    final = "first" if label in ("DDIM", "DDIM CFG++", "PLMS") else "clean"
    whole = VP.levels(13 if skips else 12, spacing, final)
    assert levels == ([*whole[:-2], whole[-1]] if skips else whole)
    assert levels != samplers.levels_for(name, VP, 12, "linspace")


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("k_dpm_2_a", "dpm2_ancestral"),
        ("k_dpm_2", "dpm2"),
        ("k_euler_a", "euler_ancestral"),
        ("k_dpmpp_2s_a", "dpmpp_2s_ancestral"),
        ("k_dpmpp_sde", "dpmpp_sde"),
        ("k_dpm_ad", "dpm_adaptive"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
        ("DPMSolverSDEScheduler", "dpmpp_sde"),
        ("EulerAncestralDiscreteScheduler", "euler_ancestral"),
        ("EulerDiscreteScheduler", "euler"),
        ("FlowMatchEulerDiscreteScheduler", "euler"),
        ("HeunDiscreteScheduler", "heun"),
        ("LMSDiscreteScheduler", "lms"),
        ("KDPM2DiscreteScheduler", "dpm2"),
        ("KDPM2AncestralDiscreteScheduler", "dpm2_ancestral"),
        ("PNDMScheduler", "plms"),
        ("DEISMultistepScheduler", "deis"),
        ("UniPCMultistepScheduler", "unipc"),
        ("DDIMScheduler", "ddim"),
        ("DDPMScheduler", "ddpm"),
        ("LCMScheduler", "lcm"),
    ],
)
def test_older_names_and_classes_of_diffusers(name, means):
    assert samplers.resolve(name) == (means, None)
    if name.endswith("Scheduler"):
        assert hasattr(diffusers, name) or name == "DPMSolverSDEScheduler"


def test_older_names_with_a_spacing():
    assert samplers.resolve("k_dpmpp_2m_ka") == ("dpmpp_2m", "karras")
    assert samplers.resolve("dpmpp_2m_sde_kl_optimal") == ("dpmpp_2m_sde", "kl_optimal")


def test_automatic_of_flow_is_uniform():
    for name in ("euler", "dpmpp_2m", "ddim"):
        assert samplers.levels_for(name, FLOW, 8) == FLOW.levels(8, "uniform")


@pytest.mark.parametrize("name", samplers.names())
def test_every_name_is_of_one_sampler(name):
    spec = samplers.get(name).spec
    assert spec.spacing in SPACINGS
    others = [samplers.get(other).spec for other in samplers.names() if other != name]
    taken = {alias.lower() for other in others for alias in other.aliases} | set(samplers.names())
    assert not {alias.lower() for alias in spec.aliases} & taken - {name}


def test_unknown_spacing_names_the_nearest_first():
    with pytest.raises(ValueError, match=r"unknown spacing 'karas'; .*: karras"):
        samplers.levels_for("euler", Schedule(), 10, "karas")


def test_a_level_of_no_schedule_is_refused():
    with pytest.raises(ValueError, match="belongs to no schedule"):
        last("dpm2", mixture, start(), [Level(0.6, 0.8, 3.0), Level(0.8, 0.6, 2.0)])
