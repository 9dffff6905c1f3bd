"""The backend `packed`: the same output as the network's own, for every kind of network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pellucid import checkpoints, plugins
from pellucid.adapters import on_backend
from pellucid.diffusion import Conditioning
from pellucid.lora import attach
from pellucid.model import Model
from pellucid.nn import has_amx
from pellucid.opening import open_model
from pellucid.pipeline import generate
from pellucid.rehearsal import rehearse
from pellucid.request import Request
from pellucid.runtime import Runtime, backends
from pellucid.runtime.backends import int8, packed
from pellucid.runtime.devices import begin_turn, given_up, is_read, reading
from references import asked, make_lora, model_of, of_family

CPU = torch.device("cpu")
Question = tuple[Tensor, Tensor, Conditioning]
needs_bfloat16 = pytest.mark.skipif(packed.unsuitable(CPU) is not None, reason="needs bfloat16")


def known() -> Any:
    return plugins.discover(backends.__name__)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def as_bfloat16(question: Question) -> Question:
    x, t, cond = question
    return x.bfloat16(), t, replace(cond.to(dtype=torch.bfloat16), sizes=cond.sizes)


def in_bfloat16(family: str) -> tuple[Model, Question, Tensor]:
    """A model, what its network is asked, and what that gives in float32."""
    model = checkpoints.load() if family == "included" else of_family(family)
    question = asked(model)
    expected = model.backbone(*question)
    model.backbone.bfloat16()
    return model, as_bfloat16(question), expected


@needs_bfloat16
@pytest.mark.parametrize("family", ["included", "sd1", "sd2", "sdxl", "sdxl_refiner", "sd3"])
@torch.no_grad()
def test_every_family(family: str) -> None:
    model, (x, t, cond), expected = in_bfloat16(family)
    made, warnings = packed.prepare(model, rehearse)
    assert warnings == () and made.backbone is not model.backbone
    for _ in range(2):  # the first call brings the weights into order
        found = made.backbone(x, t, cond)
        assert found.dtype == torch.bfloat16 and relative(found, expected) < 0.02
    other, larger = replace(cond, tokens=cond.tokens.flip(0)), torch.cat([x, x], dim=3)
    for question in ((x, t, other), (larger, t, cond), (x[:1], t[:1], cond[:1])):
        assert relative(made.backbone(*question), model.backbone(*question)) < 0.04  # of both
    again, _ = packed.prepare(model, rehearse)
    assert again.backbone.fast[0] is made.backbone.fast[0]


@pytest.mark.skipif(
    packed.unsuitable(CPU) is not None or not has_amx(), reason="needs the kernels of AMX"
)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_batch_changes_no_picture(guidance: float) -> None:
    model = open_model(None)
    adapted = on_backend(model, "packed")
    wishes = [
        Request(prompt=prompt, seed=seed, steps=3, guidance=guidance, arrange=False)
        for seed, prompt in enumerate(
            ("a rabbit", "a frog on a ball", "two red apples", "a cat", "a")
        )
    ]
    *_, together = generate(model, wishes[0], adapted, None, wishes[1:])
    for wish, own in zip(wishes, together.each(), strict=True):
        *_, alone = generate(model, wish, adapted)
        assert torch.equal(alone.x, own.x)
        assert (own.images or [])[0].tobytes() == (alone.images or [])[0].tobytes()


@needs_bfloat16
@torch.no_grad()
def test_the_network_computes_itself_where_this_cannot() -> None:
    model, (x, t, cond), expected = in_bfloat16("included")
    network = packed.prepare(model, rehearse)[0].backbone
    maps: list[Tensor] = []
    assert torch.equal(network(x, t, cond, maps), model.backbone(x, t, cond, [])) and maps
    with torch.enable_grad():
        assert network(x.clone().requires_grad_(), t, cond).requires_grad
    network(x, t, cond)
    network.float()  # as `precision.finite` does
    wide = replace(cond.to(dtype=torch.float32), sizes=cond.sizes)
    assert relative(network(x.float(), t, wide), expected) < 0.02


@needs_bfloat16
@pytest.mark.parametrize("live", [False, True])
@torch.no_grad()
def test_a_lora(live: bool, tmp_path: Path) -> None:
    model, question, _ = in_bfloat16("sd1")
    lora = checkpoints.load_lora(make_lora(model, tmp_path / "lora.safetensors"), model)
    changed = attach(model, [(lora, 0.01, 0.0)], live)
    expected = changed.backbone(*question)
    assert relative(model.backbone(*question), expected) > 0.02
    assert relative(packed.prepare(changed, rehearse)[0].backbone(*question), expected) < 0.02


def test_where_weights_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = of_family("sd1")  # in float32
    assert packed.prepare(model, rehearse)[0].backbone is model.backbone
    assert packed.unsuitable(torch.device("cuda")) == "packed runs on a CPU, not on cuda"
    monkeypatch.setattr(packed, "native_bfloat16", lambda: False)
    assert packed.unsuitable(CPU) == "packed needs a CPU with instructions for bfloat16"
    monkeypatch.setattr(packed, "native_bfloat16", lambda: True)
    monkeypatch.setattr(packed, "mkldnn", object())
    assert str(packed.unsuitable(CPU)).startswith("packed needs operators of oneDNN that this")


def saved(folder: Path, dtype: torch.dtype = torch.float16) -> Path:
    """A file of a thin Stable Diffusion 1."""
    path = folder / "sd1.safetensors"
    checkpoints.save(model_of("sd1", vocabulary=49408, layers_per_block=1), path, dtype, to="ldm")
    return path


@needs_bfloat16
@pytest.mark.parametrize("backend", ["packed", "int8"])
@torch.no_grad()
def test_a_large_network_is_in_memory_once(
    backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is read again for what the copy cannot do."""
    monkeypatch.setattr(packed, "LARGE", 0)
    monkeypatch.setattr(int8, "SMALL", 0)
    path = saved(tmp_path)
    kept, model = (checkpoints.load(path, dtype=torch.bfloat16) for _ in range(2))
    question = as_bfloat16(asked(kept))
    expected = kept.backbone(*question)
    made = known()[backend].prepare(model, rehearse)[0]
    assert not is_read(model.backbone) and Runtime(made).device == CPU
    found = made.backbone(*question)
    assert relative(found, expected) < (0.03 if backend == "packed" else 0.1)
    assert not is_read(model.backbone) and given_up(model.backbone)
    again = known()[backend].prepare(model, rehearse)[0]
    assert torch.equal(again.backbone(*question), found)
    lora = checkpoints.load_lora(make_lora(kept, tmp_path / "lora.safetensors"), kept)
    with reading(model.backbone):
        changed = attach(model, [(lora, 0.01, 0.0)])
    by_itself = attach(kept, [(lora, 0.01, 0.0)]).backbone(*question)
    assert relative(changed.backbone(*question), by_itself) < 0.03
    if backend == "packed":
        assert relative(made.backbone(*question, []), expected) < 0.03
        made.backbone.float()  # as `precision.finite` does
        x, t, cond = question
        wide = replace(cond.to(dtype=torch.float32), sizes=cond.sizes)
        assert relative(made.backbone(x.float(), t, wide), expected) < 0.03
        begin_turn(made.backbone)
        assert is_read(model.backbone)  # and not read again in each step


@needs_bfloat16
def test_a_network_that_was_changed_stays_in_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packed, "LARGE", 0)
    model = checkpoints.load(saved(tmp_path, torch.bfloat16), dtype=torch.bfloat16)
    with torch.no_grad():
        next(model.backbone.parameters()).mul_(2)
    packed.prepare(model, rehearse)
    assert is_read(model.backbone)


@needs_bfloat16
def test_a_file_that_was_replaced_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packed, "LARGE", 0)
    model = checkpoints.load(saved(tmp_path), dtype=torch.bfloat16)
    packed.prepare(model, rehearse)
    saved(tmp_path)
    with pytest.raises(checkpoints.CheckpointError, match="was changed while it was in use"):
        begin_turn(model.backbone)
