"""The backends that use OpenVINO: the same output as the network's own, for every kind of network."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pellucid import checkpoints, pipeline
from pellucid.lora import attach
from pellucid.model import Model
from pellucid.request import Request
from pellucid.runtime import backends
from pellucid.runtime.backends import (
    LARGE,
    OnBackend,
    _compiled,
    _ranges,
    choose_backend,
    fused,
    openvino,
    openvino_int8,
    packed,
)
from pellucid.runtime.precision import native_int8
from references import asked, make_lora, model_of, of_family

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def package() -> Iterator[None]:
    """OpenVINO is installed."""
    pytest.importorskip("openvino")
    why = openvino.unsuitable(CPU)
    if why is not None:
        pytest.skip(why)
    yield


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def look(model: Model) -> None:
    """In place of `rehearse`, which has words that are unknown to the thin models."""
    with torch.no_grad():
        model.backbone(*asked(model))


def small() -> Model:
    return model_of("sd1", block_out_channels=(32, 64), transformer_layers=(1, 1), heads=(2, 2))


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sdxl_refiner", "sd3"])
@torch.no_grad()
def test_every_family(family: str) -> None:
    model = of_family(family)
    made, warnings = openvino.prepare(model, look)
    assert warnings == ()
    assert relative(made.backbone(*asked(model)), model.backbone(*asked(model))) < 1e-4


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
@torch.no_grad()
def test_in_bfloat16(family: str) -> None:
    """The graph has bfloat16 too, and no copy of the weights in float32."""
    model = of_family(family)
    expected = model.backbone(*asked(model))
    model.backbone.bfloat16()
    x, t, cond = asked(model)
    question = (x.bfloat16(), t, replace(cond.to(dtype=torch.bfloat16), sizes=cond.sizes))
    made, warnings = openvino.prepare(model, look)
    assert warnings == ()
    found = made.backbone(*question)
    assert found.dtype == torch.bfloat16
    assert relative(found, expected) < 0.02
    ((_, graph),) = made.backbone.graphs.values()
    assert graph.dtype == torch.bfloat16


@pytest.mark.usefixtures("package")
@torch.no_grad()
def test_a_picture_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = openvino.prepare(small(), look)
    x, t, cond = asked(made, 3)
    together = made.backbone(x, t, cond)
    for i in range(3):
        row = slice(i, i + 1)
        assert torch.equal(made.backbone(x[row], t[row], cond[row]), together[row])
    assert len(made.backbone.graphs) == 1
    monkeypatch.setattr("pellucid.runtime.backends._compiled.SIZES", 1)
    for question in (asked(made, 1, 12, 9), asked(made, 1)):
        assert relative(made.backbone(*question), made.backbone.network(*question)) < 1e-4
        assert len(made.backbone.graphs) == 1


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("live", [False, True])
@torch.no_grad()
def test_a_lora(live: bool, tmp_path: Path) -> None:
    model = small()
    lora = checkpoints.load_lora(make_lora(model, tmp_path / "lora.safetensors"), model)
    changed = attach(model, [(lora, 0.01, 0.0)], live)
    made, _ = openvino.prepare(changed, look)
    question = asked(model)
    assert relative(made.backbone(*question), changed.backbone(*question)) < 1e-4
    assert relative(made.backbone(*question), model.backbone(*question)) > 1e-2


@pytest.mark.usefixtures("package")
def test_attention_maps_and_slopes_come_from_the_network_itself() -> None:
    model = small()
    made, _ = openvino.prepare(model, look)
    x, t, cond = asked(model)
    maps: list[Tensor] = []
    with torch.no_grad():
        made.backbone(x, t, cond, maps)
    assert maps
    out = made.backbone(x.requires_grad_(), t, cond)
    (slope,) = torch.autograd.grad(out.square().sum(), x)
    assert torch.isfinite(slope).all() and slope.abs().sum() > 0


@pytest.mark.usefixtures("package")
def test_a_network_that_is_not_known_runs_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    monkeypatch.setattr(type(model.backbone), "body", lambda self, x, *rest: torch.cumsum(x, dim=1))
    choice = backends.BackendChoice("openvino")
    made, warnings = OnBackend(lambda model, _: (model, ()), choice, look)(model, Request())
    assert made.backbone is model.backbone
    (warning,) = warnings
    assert warning == (
        "openvino cannot compute this network (the network calls cumsum); the backend is eager"
    )


# ---------------------------------------------------------------- 8 bits


@pytest.fixture
def int8(package: None) -> None:
    if not native_int8():
        pytest.skip("needs VNNI")


def ranges_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "pellucid" / "ranges").glob("*.json"))


@pytest.mark.usefixtures("int8")
@pytest.mark.parametrize("tokens", [False, True])
@torch.no_grad()
def test_8_bits(tokens: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.runtime.backends.int8.LEAST", 2**10)
    monkeypatch.setattr(_compiled, "has_amx", lambda: not tokens)
    model = small()
    made, _ = openvino_int8.prepare(model, look)
    error = relative(made.backbone(*asked(model)), model.backbone(*asked(model)))
    assert 1e-3 < error < 0.1


def test_ranges_are_measured_once(tmp_path: Path) -> None:
    model, calls = of_family("sd1"), []

    def counted(model: Model) -> None:
        calls.append(1)
        look(model)

    first, warnings = _ranges.ranges_of(model, counted)
    assert len(first) > 5 and all(low <= 0 <= high for low, high in first.values())
    assert warnings == ()
    assert _ranges.ranges_of(model, counted) == (first, ()) and len(calls) == 1
    (file,) = ranges_files(tmp_path)
    values = json.loads(file.read_text())
    name = next(iter(values))
    for damaged in ("", "[1]", "{}", json.dumps(values | {name: [1, 0]}), file.read_text()[:50]):
        file.write_text(damaged)
        before = len(calls)
        assert _ranges.ranges_of(model, counted) == (first, ()) and len(calls) == before + 1
        assert json.loads(file.read_text()) == values
    with torch.no_grad():
        next(model.backbone.parameters()).mul_(1.5)
    _ranges.ranges_of(model, counted)
    assert len(ranges_files(tmp_path)) == 2


@pytest.mark.usefixtures("int8")
@torch.no_grad()
def test_ranges_that_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    model = small()
    _, warnings = openvino_int8.prepare(model, look)
    (warning,) = warnings
    assert warning.startswith("the ranges of the layers are measured again the next time: ")
    assert openvino_int8.prepare(model, look)[1] == ()  # said once


# ---------------------------------------------------------------- the choice


def test_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (fused, openvino, openvino_int8, packed):
        monkeypatch.setattr(backend, "unsuitable", lambda device: None)
    half, whole = torch.bfloat16, torch.float32
    for amx, name, dtype, expected in (
        (True, "auto", half, "packed"),
        (True, "fast", half, "packed"),
        (True, "auto", whole, "openvino"),
        (True, "fast", whole, "openvino"),
        (False, "auto", half, "openvino"),
        (False, "fast", half, "openvino_int8"),
    ):
        monkeypatch.setattr(backends, "has_amx", lambda amx=amx: amx)
        assert choose_backend(name, CPU, LARGE, dtype) == (expected, ())
    assert choose_backend("auto", CPU, LARGE - 1, half) == ("fused", ())
    monkeypatch.setattr(fused, "unsuitable", lambda device: "fused needs a compiler")
    assert choose_backend("auto", CPU, LARGE - 1, half) == ("packed", ())
    assert choose_backend("auto", CPU, LARGE - 1, whole) == ("eager", ())
    monkeypatch.setattr(backends, "free_memory", lambda device: 3 * LARGE)
    for dtype in (half, whole):
        assert choose_backend("auto", CPU, LARGE, dtype) == ("eager", ())
    monkeypatch.setattr(backends, "free_memory", lambda device: None)  # not known
    assert choose_backend("auto", torch.device("cuda"), LARGE, half) == ("eager", ())


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.runtime.backends._compiled.installed", lambda: False)
    assert choose_backend("auto", CPU) == ("eager", ())
    name, (warning,) = choose_backend("openvino", CPU)
    assert name == "eager"
    assert warning == (
        "openvino is not installed: pip install pellucid[openvino]; the backend is eager"
    )


def test_half_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    half = types.ModuleType("openvino")
    monkeypatch.setitem(sys.modules, "openvino", half)
    monkeypatch.setattr("pellucid.runtime.backends._compiled.installed", lambda: True)
    name, (warning,) = choose_backend("auto", CPU)
    assert name == "eager" and warning.startswith("openvino is not complete (")
    assert warning.endswith("; the backend is eager")


@pytest.mark.usefixtures("package")
def test_nothing_is_reported_over_the_network() -> None:
    code = (
        "from pellucid.runtime.backends import _compiled; _compiled.load(); import sys;"
        "print([name for name in sys.modules if 'telemetry' in name and 'openvino_t' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.usefixtures("package")
def test_a_picture(model: Model) -> None:
    request = Request(prompt="a red apple", steps=3, seed=4, count=2)
    (*_, plain) = pipeline.generate(model, request)
    adapt = OnBackend(lambda model, _: (model, ()), backends.BackendChoice("openvino"), look)
    (*_, last) = pipeline.generate(model, request, adapt)
    assert last.warnings == plain.warnings
    assert relative(last.x, plain.x) < 1e-4
