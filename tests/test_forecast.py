"""Steps that are forecast: which ones, how exactly, and where there are none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid import checkpoints, pipeline
from pellucid.forecast import FEWEST, Forecast, is_computed
from pellucid.guidance import Parts, signal_share
from pellucid.model import Model
from pellucid.plan import faster
from pellucid.request import Request
from pellucid.samplers import levels_for
from pellucid.schedule import Level


@pytest.fixture(scope="module")
def shipped() -> Model:
    return checkpoints.load()


def levels(model: Model, steps: int) -> list[Level]:
    return levels_for("euler", model.schedule, steps, "uniform")


def test_which_steps_are_computed() -> None:
    assert [step for step in range(20) if is_computed(step, 20)] == [
        *range(6), 6, 8, 10, 12, 14, 16, 18, 19,
    ]  # fmt: skip


def test_a_line_is_forecast_exactly(model: Model) -> None:
    begins, calls = levels(model, 20)[:-1], []

    def line(x: Tensor, level: Level) -> Parts:
        calls.append(level)
        return Parts(*(x * 0 + slope * signal_share(level) - 1 for slope in (1.0, 2.0, -3.0)))

    denoise, x = Forecast(line, begins), torch.zeros(1, 4, 2, 2)
    for level in begins:
        for found, slope in zip(denoise(x, level), (1, 2, -3), strict=True):
            assert torch.allclose(found, x + slope * signal_share(level) - 1, atol=1e-5)
    assert len(calls) == sum(is_computed(step, 20) for step in range(20)) == 14


def test_nothing_is_forecast_across_a_change(model: Model) -> None:
    begins, calls = levels(model, 20)[:-1], []

    def steady(x: Tensor, level: Level) -> Parts:
        calls.append(begins.index(level))
        return Parts(x, x, x)

    denoise = Forecast(steady, begins, changes=[11])
    for level in begins:
        denoise(torch.zeros(1, 4, 2, 2), level)
    assert calls == [0, 1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 14, 16, 18, 19]


def evaluations(model: Model, request: Request, monkeypatch: pytest.MonkeyPatch) -> int:
    calls = []
    forward = type(model.backbone).forward

    def counted(*words: object) -> Tensor:
        calls.append(1)
        return forward(*words)

    monkeypatch.setattr(type(model.backbone), "forward", counted)
    (*_,) = pipeline.generate(model, request)
    monkeypatch.setattr(type(model.backbone), "forward", forward)
    return len(calls)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, 14),
        ({"sampler": "heun"}, 28),
        ({"steps": FEWEST - 1}, FEWEST - 1),
        ({"sampler": "euler_ancestral"}, 20),
        ({"sampler": "ddim", "eta": 0.5}, 20),
        ({"prompt": "[apple|rabbit]"}, 20),
        ({"guidance": 3.0, "interval": (0.3, 0.6)}, 15),
    ],
    ids=str,
)
def test_how_often_the_network_is_evaluated(
    more: dict[str, object], expected: int, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"prompt": "a red apple", "steps": 20, "seed": 1, "sampler": "euler", "forecast": True}
    request = Request(**(given | more))  # type: ignore[arg-type]
    (*_, last) = pipeline.generate(model, request)
    said = [text for text in last.warnings if "forecast" in str(text)]
    assert bool(said) == (expected == request.steps and "[" not in request.prompt)
    assert abs(evaluations(model, request, monkeypatch) - expected) <= 2


def test_the_picture_is_nearly_the_same(shipped: Model) -> None:
    """Nearer to that of all steps than as many steps as are computed."""
    small = replace(shipped, second_stage=None)
    request = Request(prompt="a red rabbit", steps=20, seed=1, width=64, height=64)

    def draw(**more: object) -> np.ndarray:
        (*_, last) = pipeline.generate(small, request.model_copy(update=more))
        return np.asarray(last.images[0], float)  # type: ignore[index]

    whole = draw()
    ratio = [
        10 * np.log10(255**2 / ((draw(**more) - whole) ** 2).mean())
        for more in ({"forecast": True}, {"steps": 14})
    ]
    assert ratio[0] > 40 and ratio[0] > ratio[1] + 3


def test_fast_forecasts_where_it_can(model: Model) -> None:
    def asked(**more: object) -> bool:
        given = {"prompt": "a red apple", "steps": 20, "sampler": "euler"}
        return faster(model, Request.model_validate(given | more)).forecast

    assert asked()
    assert not asked(forecast=False)  # as it says
    assert not asked(steps=FEWEST - 1) and not asked(sampler="euler_ancestral")
    assert asked(forecast=True, steps=4)  # which then is a warning
