"""The noise report: schedules, steps, noise and estimates, checked by independent numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pellucid.conditioning import encode_captions
from pellucid.diffusion import PREDICTIONS, small_step
from pellucid.explain.noise import (
    SIDE,
    NoiseReport,
    NoiseSettings,
    examine_noise,
    noise_types,
    page,
    schedules,
)
from pellucid.explain.noise.spectrum import power_spectrum, radial_average, slope
from pellucid.explain.noise.trajectory import random_trajectory
from pellucid.images.pixels import to_tensor
from pellucid.lexicon import Entry, Lexicon
from pellucid.model import Model
from pellucid.noise import generators
from pellucid.preview import pictures
from pellucid.runtime import Runtime
from pellucid.schedule import CLEAN, SCHEDULES, Schedule

TIMES = (0, 300, 999)


def photo(width: int = 40, height: int = 30) -> Image.Image:
    """Smooth colours with an edge."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([255 * x / width, 255 * y / height, 200 * (x > width / 2)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def report(model: Model) -> NoiseReport:
    return examine_noise(
        model, photo(), "photo.png", NoiseSettings(TIMES, prompt="a rabbit", seed=3)
    )


# ---------------------------------------------------------------- schedules


def test_curves_are_those_of_the_schedules(report: NoiseReport) -> None:
    curves = {one.name: one for one in report.schedules}
    assert {name.removesuffix(" (model's)") for name in curves} == {*SCHEDULES, "zero_terminal_snr"}
    assert "flow (model's)" in curves
    # Ho et al. 2020: betas from 1e-4 to 0.02.
    products = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    linear = curves["linear"]
    assert linear.alpha[0] == pytest.approx(math.sqrt(products[0]))
    assert linear.alpha[-1] == pytest.approx(math.sqrt(products[-1]))
    flow = curves["flow (model's)"]
    assert flow.alpha[25] == pytest.approx(0.75) and flow.sigma[25] == pytest.approx(0.25)
    assert flow.log_snr[25] == pytest.approx(2 * math.log(3))
    assert (flow.log_snr[0], flow.log_snr[-1]) == (math.inf, -math.inf)


def test_what_is_left_is_the_share_of_the_variance() -> None:
    level = Schedule("flow").level(250)
    assert schedules.picture_share(level, 0.5) == pytest.approx(
        0.5 * 0.75**2 / (0.5 * 0.75**2 + 0.25**2)
    )
    assert schedules.picture_share(CLEAN, 0.5) == 1
    assert math.isnan(schedules.picture_share(CLEAN, 0.0))


def test_a_strip_goes_from_the_picture_to_nothing_of_it(report: NoiseReport, model: Model) -> None:
    other = examine_noise(model, photo().rotate(180), "other.png", NoiseSettings(TIMES, seed=3))
    for one, two in zip(report.schedules, other.schedules, strict=True):
        first, last = (np.asarray(one.strip[i], float) for i in (0, -1))
        start = np.asarray(report.picture, float)
        if one.name.startswith("flow"):
            assert np.array_equal(first, start)
        # Stable Diffusion's own schedule ends with some picture left, alpha = 0.07.
        left = np.abs(last - np.asarray(two.strip[-1], float)).mean() / np.abs(start - 127).mean()
        assert left == 0 if one.name == "zero_terminal_snr" else left > 0


def test_a_schedule_of_its_own_is_shown_beside_the_others() -> None:
    own = Schedule("cosine", T=100)
    assert list(schedules.with_models_own(own).values()).count(own) == 1
    assert schedules.level_at(own, 500).t == 50 and schedules.level_at(own, 999).t == 99
    with pytest.raises(ValueError, match=r"unknown schedule 'cosin'.*: cosine"):
        schedules.schedule_named("cosin")


# ---------------------------------------------------------------- small steps and one jump


def test_a_small_step_is_that_of_ddpm() -> None:
    beta = np.linspace(1e-4, 0.02, 1000)[500]
    now, after = (Schedule("linear", beta_start=1e-4, beta_end=0.02).level(t) for t in (499, 500))
    x, eps = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    expected = math.sqrt(1 - beta) * x + math.sqrt(beta) * eps
    torch.testing.assert_close(small_step(x, eps, now, after), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [*SCHEDULES, "zero_terminal_snr"])
def test_small_steps_add_up_to_the_jump(name: str) -> None:
    """Exactly: the factor of x0 and the variance of the noise, carried along apart."""
    schedule = schedules.schedule_named(name)
    factor = torch.ones((), dtype=torch.float64)
    variance, before = 0.0, CLEAN
    one, none = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for t in range(1000):
        level = schedule.level(t)
        ratio, fresh = (
            float(small_step(x, e, before, level)) for x, e in ((one, none), (none, one))
        )
        factor, variance, before = ratio * factor, ratio**2 * variance + fresh**2, level
        assert float(factor) == pytest.approx(level.alpha, rel=1e-9, abs=1e-12)
        assert variance == pytest.approx(level.sigma**2, rel=1e-9, abs=1e-12)


def test_steps_and_jump_have_the_moments_of_the_equation(report: NoiseReport) -> None:
    x0 = np.asarray(report.picture, float) / 127.5 - 1
    assert [m.t for m in report.trajectory.moments] == list(
        TIMES
    ) and report.trajectory.count == 1000
    for m in report.trajectory.moments:
        u = m.t / 1000  # the model's schedule is flow
        assert m.mean == pytest.approx((1 - u) * x0.mean(), abs=1e-6)
        assert m.variance == pytest.approx((1 - u) ** 2 * x0.var() + u**2, abs=1e-6)
        for found in (m.steps_mean, m.jump_mean):
            assert abs(found - m.mean) <= 4.5 * m.mean_deviation + 1e-6
        for found in (m.steps_variance, m.jump_variance):
            assert abs(found - m.variance) <= 4.5 * m.variance_deviation + 1e-6
        same = np.array_equal(np.asarray(m.steps), np.asarray(m.jump))
        assert same == (m.t == 0)


def test_the_deviations_are_those_that_are_seen() -> None:
    x0 = to_tensor(photo(8, 8))
    schedule = Schedule("cosine", T=4)
    seen = [
        random_trajectory(x0, (0, 500), schedule, generators(seed, 1)[0]).moments[1]
        for seed in range(300)
    ]
    for name in ("mean", "variance"):
        expected = getattr(seen[0], f"{name}_deviation")
        for way in ("steps", "jump"):
            values = np.array([getattr(m, f"{way}_{name}") for m in seen])
            assert values.std() == pytest.approx(expected, rel=0.15)
            assert abs(values.mean() - getattr(seen[0], name)) < 5 * expected / math.sqrt(300)


# ---------------------------------------------------------------- types of noise


def test_parseval() -> None:
    x = torch.randn(2, 9, 14)
    power = power_spectrum(x)
    assert power.shape == x.shape and power.dtype == torch.float64
    assert power.mean() == pytest.approx(x.double().square().mean().item())


def test_a_wave_is_found_at_its_frequency() -> None:
    wave = torch.cos(2 * math.pi * 5 * torch.arange(64) / 64).expand(64, 64)
    frequency, power = radial_average(power_spectrum(wave))
    assert frequency[power.argmax()] == pytest.approx(5 / 64)
    assert len(frequency) == 32 and frequency[-1] == 0.5


def test_rings_are_means_over_waves_of_about_the_same_frequency() -> None:
    power = torch.rand(6, 10, dtype=torch.float64)
    frequency, found = radial_average(power)
    rings: dict[int, list[float]] = {}
    for i in range(6):
        for j in range(10):
            ring = round(math.hypot((i - 3) / 6, (j - 5) / 10) * 10)
            rings.setdefault(ring, []).append(power[i, j].item())
    assert frequency.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert found.tolist() == pytest.approx([np.mean(rings[ring]) for ring in range(1, 6)])


def test_the_slope_of_a_power_law_is_its_exponent() -> None:
    frequency = torch.linspace(0.01, 0.5, 50, dtype=torch.float64)
    assert slope(frequency, 3 * frequency**-2) == pytest.approx(-2)
    assert math.isnan(slope(frequency[:1], frequency[:1]))
    assert math.isnan(slope(frequency, torch.zeros(50)))


def test_each_type_of_noise_is_told_by_its_numbers(report: NoiseReport) -> None:
    found = {kind.name: kind for kind in report.noise_types}
    slopes = {name: kind.spectrum.slope for name, kind in found.items()}
    assert slopes["gaussian"] == pytest.approx(0, abs=0.05)
    assert slopes["offset"] == pytest.approx(0, abs=0.05)
    assert slopes["blue"] == pytest.approx(1, abs=0.1)
    assert slopes["pink"] == pytest.approx(-1, abs=0.1)
    assert slopes["pyramid"] < -0.5
    assert all(kind.variance == pytest.approx(1, abs=0.02) for kind in found.values())
    assert found["gaussian"].brightness == pytest.approx(1 / noise_types.SIDE, rel=0.25)
    assert found["offset"].brightness == pytest.approx(0.1, rel=0.25)
    assert found["blue"].neighbours < -0.1 < 0.1 < found["pink"].neighbours
    assert report.spectrum.slope < -1.5  # as photographs
    plane = np.asarray(found["offset"].spectrum.plane.convert("L"))
    middle = noise_types.SIDE // 2, noise_types.SIDE // 2
    assert plane[middle] > 200  # the mean brightness
    assert abs(np.median(plane) - 127) < 5


# ---------------------------------------------------------------- the model's estimate


def test_the_estimate_is_what_the_network_says(report: NoiseReport, model: Model) -> None:
    estimates = report.estimates
    pixels = to_tensor(estimates.picture)
    x0 = Runtime(model).encode(pixels[None])
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3))
    for t, found in zip(TIMES, estimates.by_time, strict=True):
        alpha, sigma = 1 - t / 1000, t / 1000
        x = alpha * x0 + sigma * eps
        cond = encode_captions(model.text, model.tokenizer, ["a rabbit"])
        v = model.backbone(x, torch.tensor([float(t)]), cond)
        guess = (alpha * x - sigma * v) / (alpha**2 + sigma**2)
        assert found.error == pytest.approx(
            ((guess - x0).norm() / x0.norm()).item(), rel=1e-4, abs=1e-6
        )
        (drawn,) = pictures(Runtime(model), guess)
        difference = np.abs(np.asarray(drawn, int) - np.asarray(found.guess, int))
        assert difference.max() <= 1
        mse = np.square(
            (np.asarray(found.guess, float) - np.asarray(estimates.picture, float)) / 127.5
        )
        assert found.psnr == pytest.approx(10 * math.log10(4 / mse.mean()), abs=1e-3)
    assert estimates.by_time[0].error == 0 and estimates.by_time[0].psnr == estimates.decoded_psnr


def test_the_prompt_and_the_guidance_count(report: NoiseReport, model: Model) -> None:
    empty = examine_noise(model, photo(), "photo.png", NoiseSettings(TIMES, seed=3))
    more = examine_noise(
        model, photo(), "p", NoiseSettings(TIMES, prompt="a rabbit", guidance=4, seed=3)
    )
    errors = {one.estimates.by_time[1].error for one in (report, empty, more)}
    assert len(errors) == 3


def test_a_prompt_of_several_things_stays_whole(model: Model) -> None:
    words = Lexicon((Entry("", ("rabbit",)), Entry("", ("frog",))))
    prompted = NoiseSettings((300,), prompt="a rabbit and a frog", seed=3)
    whole, knowing = (
        examine_noise(each, photo(), "p", prompted)
        for each in (model, replace(model, lexicon=words))
    )
    assert whole.estimates.by_time[0].error == knowing.estimates.by_time[0].error


def test_no_estimate_where_nothing_can_be_said(
    model: Model, well_formed: Callable[[str], None]
) -> None:
    blind = replace(model, schedule=Schedule(zero_terminal_snr=True), prediction="eps")
    seen = examine_noise(blind, photo(), settings=NoiseSettings(TIMES))
    assert [look.t for look in seen.estimates.by_time] == [0, 300]
    for report in (seen, examine_noise(blind, photo(), settings=NoiseSettings((999,)))):
        text = page.html(report)
        well_formed(text)
        assert "such a t is left out" in text


# ---------------------------------------------------------------- the record and the page


def test_the_record_goes_to_json_and_back(report: NoiseReport) -> None:
    text = report.model_dump_json()
    again = NoiseReport.model_validate_json(text)
    assert again.model_dump_json() == text
    older = json.loads(text)
    older |= {"walk": older.pop("trajectory"), "kinds": older.pop("noise_types")}
    older["estimates"]["looks"] = older["estimates"].pop("by_time")
    assert NoiseReport.model_validate(older).model_dump_json() == text
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert np.array_equal(np.asarray(again.picture), np.asarray(report.picture))
    assert again.schedules[0].strip[1].tobytes() == report.schedules[0].strip[1].tobytes()
    assert again.schedules[5].log_snr == report.schedules[5].log_snr  # with its infinities
    with pytest.raises(ValueError, match="picture"):
        NoiseReport.model_validate_json(text.replace("data:image/png", "data:image/gif"))
    damaged = json.loads(text) | {"picture": "data:image/png;base64,AAAA"}
    with pytest.raises(ValueError, match="cannot be read"):
        NoiseReport.model_validate(damaged)


def test_the_page_has_everything_and_needs_nothing(
    report: NoiseReport, well_formed: Callable[[str], None]
) -> None:
    text = page.html(report)
    well_formed(text)
    assert "is left out" not in text
    strips, steps, types, looks = len(report.schedules) * len(TIMES), 2 * len(TIMES), 12, 6
    assert text.count("<img ") == 2 + strips + steps + types + looks
    assert text.count('class="plot"') == 4 + 2 + 1 + 2
    assert "photo.png: 40x30" in text and "its middle, 16x16" in text
    assert "&#x27;a rabbit&#x27;" in text


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (1, 1), "red"),
        Image.new("RGB", (3, 900), "white"),
        photo(700, 40),
        photo(2, 2),
    ],
    ids=["one pixel", "a white line", "a panorama", "four pixels"],
)
def test_any_size_of_picture(
    image: Image.Image, model: Model, well_formed: Callable[[str], None]
) -> None:
    report = examine_noise(model, image, "odd", NoiseSettings((0, 999)))
    assert max(report.picture.size) <= SIDE and report.size == image.size
    assert NoiseReport.model_validate_json(report.model_dump_json()) is not None
    well_formed(page.html(report))


def test_a_guided_guess_is_no_mean(report: NoiseReport, model: Model) -> None:
    guided = examine_noise(
        model, photo(), "one", NoiseSettings((0,), prompt="a rabbit", guidance=5)
    )
    assert "Near the end that is the mean" in page.html(report)
    assert "Guidance 5 exaggerates" in page.html(guided)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_equation_is_that_of_the_model(model: Model, kind: str) -> None:
    report = examine_noise(replace(model, prediction=kind), photo(), "one", NoiseSettings((500,)))
    assert page.X0[kind] in page.html(report)
    assert sum(equation in page.html(report) for equation in page.X0.values()) == 1


def test_every_schedule_is_explained(report: NoiseReport) -> None:
    text = page.html(report)
    assert set(schedules.ABOUT) == set(schedules.published())
    assert all(escape(look.about) in text for look in report.schedules)


def test_one_time_alone(model: Model, well_formed: Callable[[str], None]) -> None:
    well_formed(page.html(examine_noise(model, photo(), "one", NoiseSettings((0,)))))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"times": ()}, "got none"),
        ({"times": (0, 1000)}, "from 0 to 999, got 0, 1000"),
        ({"times": (5, 5)}, "rising"),
        ({"times": range(21)}, "1 to 20"),
        ({"guidance": math.nan}, "finite"),
        ({"seed": -1}, "seed must be from 0 to .*, got -1"),
    ],
)
def test_wrong_settings_are_named(model: Model, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        examine_noise(model, photo(), settings=NoiseSettings(**options))


# ---------------------------------------------------------------- the command


def test_the_command(
    call: Any,
    monkeypatch: pytest.MonkeyPatch,
    model_file: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    photo().save("photo.png")
    command = ("noise", "photo.png", "--model", model_file, "--t", "0, 999")
    status, out, _ = call(*command)
    assert status == 0
    assert out == "outputs/photo-noise.html\n"
    assert Path("outputs/photo-noise.html").stat().st_size > 1000
    status, out, _ = call(*command, "--json", "--schedule", "cosine")
    assert status == 0
    report = NoiseReport.model_validate_json(out)
    assert report.times == (0, 999) and report.trajectory.schedule == "cosine"
    status, out, _ = call(*command, "--json", "--out", "new/a.html")
    assert status == 0
    assert NoiseReport.model_validate_json(out).source == "photo.png"
    assert sorted(path.name for path in Path("new").iterdir()) == ["a.html"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("none.png",), "none.png is not a file"),
        (("text.png",), "text.png is not a picture"),
        (("half.png",), "half.png is truncated or damaged"),
        (("large.png",), "large.png is too large: 20000x2 pixels"),
        (
            ("photo.png", "--t", "1,x"),
            "--t must be whole numbers with commas, such as 0,250,500,999, got '1,x'",
        ),
        (("photo.png", "--t", "5,4"), "rising whole numbers"),
        (("photo.png", "--schedule", "cosin"), "unknown schedule 'cosin'"),
        (("photo.png", "--out", "a.pdf"), "ends in .html"),
        (("photo.png", "--out", "page.html"), "page.html exists; --overwrite replaces it"),
        (("photo.png", "--model", "none.safetensors"), "none.safetensors does not exist"),
    ],
)
def test_bad_input_is_one_sentence(
    refused: Any,
    words: tuple[str, ...],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    model_file: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("page.html").write_text("of before")
    Path("text.png").write_text("not a picture")
    Image.new("RGB", (20_000, 2)).save("large.png")
    photo().save("photo.png")
    Path("half.png").write_bytes(Path("photo.png").read_bytes()[:90])
    before = sorted(tmp_path.iterdir())
    model = () if "--model" in words else ("--model", model_file)
    assert sentence in refused("noise", *words, *model)
    assert sorted(tmp_path.iterdir()) == before


def test_the_small_steps_are_counted_for_those_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def each(what: str, items: range) -> range:
        seen.append((what, len(items)))
        return items

    monkeypatch.setattr("pellucid.explain.noise.trajectory.each", each)
    random_trajectory(torch.zeros(3, 2, 2), (0, 100), Schedule(), generators(0, 1)[0])
    assert seen == [("adding noise in small steps", 101)]
