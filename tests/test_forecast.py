"""Steps that are forecast: which ones, how exactly, and where there are none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pellucid import checkpoints, pipeline
from pellucid.forecast import FEWEST, Forecast, computed_steps, guided_as, is_computed
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


def chosen(model: Model, steps: int, spacing: str) -> str:
    begins = levels_for("euler", model.schedule, steps, spacing)[:-1]
    letters = {True: "W", False: "c", None: "."}
    return "".join(letters[computed_steps(begins).get(step)] for step in range(steps))


def test_fewer_steps_are_computed_where_more_is_forecast(model: Model, shipped: Model) -> None:
    assert chosen(model, 20, "uniform") == "WWW.c.W..c..c...W..c"
    assert (
        chosen(shipped, 20, "karras") == "W....W.W.cWcc.W....c"
    )  # whose first steps change nothing
    for steps in range(FEWEST, 100):
        for spacing in ("uniform", "karras", "exponential"):
            found = chosen(model, steps, spacing)
            assert found[0] == "W" and found[-1] != "."
            assert 2 * found.count("W") + found.count("c") <= 1.2 * steps


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


def test_guidance_that_does_not_change_is_reused_exactly(model: Model) -> None:
    """The noise of the unconditional estimate, and of the guided one, differs by a constant."""
    begins, calls = levels(model, 20)[:-1], []

    def estimates(x: Tensor, level: Level) -> Parts:
        cond = x * 0 + signal_share(level)
        return Parts(cond - 3 * level.s, cond, cond + 2 * level.s)

    def alone(x: Tensor, level: Level) -> Parts:
        calls.append(level)
        return Parts(*[estimates(x, level).cond] * 3)

    denoise, x = Forecast(estimates, begins, alone=alone), torch.zeros(1, 4, 2, 2)
    for step, level in enumerate(begins):
        found = denoise(x, level)
        if step in computed_steps(begins):
            for part, expected in zip(found, estimates(x, level), strict=True):
                assert torch.allclose(part, expected, atol=1e-5)
    assert len(calls) == list(computed_steps(begins).values()).count(False) == 4


def test_guidance_of_pure_noise_is_not_reused(model: Model) -> None:
    level = levels(model, 20)[5]
    x = torch.ones(1, 4, 2, 2)
    found = guided_as(replace(level, alpha=0.0), Parts(3 * x, x, x), 2 * x, level)
    assert all(torch.equal(part, 2 * x) for part in found)


def evaluations(model: Model, request: Request, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of the batch of each evaluation."""
    calls = []
    forward = type(model.backbone).forward

    def counted(network: nn.Module, x: Tensor, *words: object) -> Tensor:
        calls.append(len(x))
        return forward(network, x, *words)

    monkeypatch.setattr(type(model.backbone), "forward", counted)
    (*_,) = pipeline.generate(model, request)
    monkeypatch.setattr(type(model.backbone), "forward", forward)
    return calls


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
    assert abs(len(evaluations(model, request, monkeypatch)) - expected) <= 2


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, [2, 2, 2, 1, 2, 1, 1, 2, 1]),
        ({"guidance": 1.0}, [1] * 9),
        ({"prompt": "an apple AND a rabbit"}, [3, 3, 3, 3, 3, 3, 3, 3, 3]),  # weights that do not
        # add up to 1 need the unconditional estimate for the conditional one
        ({"prompt": "a red apple and two rabbits"}, [2, 2, 2, 1, 2, 1, 1, 2, 1]),
        ({"rescale": 0.5}, [2, 2, 2, 1, 2, 1, 1, 2, 1]),
        ({"guidance": 3.1}, [2] * 14),  # above the model's own
        ({"steps": FEWEST - 1}, [2] * (FEWEST - 1)),
        ({"sampler": "euler_ancestral"}, [2] * 20),
    ],
    ids=str,
)
def test_what_is_evaluated_where_more_is_forecast(
    more: dict[str, object], expected: list[int], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"prompt": "a red apple", "steps": 20, "seed": 1, "sampler": "euler"}
    given |= {"forecast": True, "forecast_more": True, "guidance": 3.0} | more  # type: ignore[dict-item]
    request = Request.model_validate(given)
    guided = replace(model, defaults=replace(model.defaults, guidance=3.0))
    assert evaluations(guided, request, monkeypatch) == expected
    (*_, last) = pipeline.generate(guided, request)
    said = [text for text in last.warnings if "forecast_more does nothing" in str(text)]
    assert bool(said) == (request.guidance == 3.1)


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
        for more in (
            {"forecast": True},
            {"steps": 14},
            {"forecast": True, "forecast_more": True},
            {"steps": 7},
        )
    ]
    assert ratio[0] > 40 and ratio[0] > ratio[1] + 3
    assert ratio[2] > 30 and ratio[2] > ratio[3] + 3


def test_fast_forecasts_where_it_can(model: Model) -> None:
    def asked(**more: object) -> tuple[bool, bool]:
        given = {"prompt": "a red apple", "steps": 20, "sampler": "euler"}
        given |= {"guidance": model.defaults.guidance}
        request = faster(model, Request.model_validate(given | more))
        return request.forecast, request.forecast_more

    neither = (False, False)
    assert asked() == asked(forecast=True) == (True, True)
    assert asked(forecast=False) == neither  # as it says
    assert asked(guidance=model.defaults.guidance + 1) == (True, False)
    assert asked(forecast_more=False) == (True, False)
    assert asked(forecast=True, forecast_more=False) == (True, False)
    assert asked(steps=FEWEST - 1) == asked(sampler="euler_ancestral") == neither
    assert asked(forecast=True, steps=4) == (True, False)  # which then is a warning
