"""Every backend draws what float32 draws, within a bound that is its own."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pellucid import checkpoints
from pellucid import nn as blocks
from pellucid.conditioning import encode_prompts
from pellucid.diffusion import Conditioning
from pellucid.model import Model
from pellucid.opening import open_model
from pellucid.rehearsal import rehearse
from pellucid.request import Request
from pellucid.runtime import Runtime, backends, devices, precision
from pellucid.runtime.backends import EAGER, OnBackend, choose_backend, int8
from pellucid.runtime.precision import native_bfloat16
from pellucid.runtime.threads import SMALL, threads_for

Call = Callable[..., tuple[int, str, str]]
CPU = torch.device("cpu")
BOUNDS = {
    "eager": 1e-5,
    "packed": 1e-5,
    "fused": 1e-5,
    "int8": 0.1,
    "openvino": 1e-4,
    "openvino_int8": 0.1,
}
"""How far the network's output may be from that of float32, relative to its size."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def as_it_is(model: Model, request: Request) -> tuple[Model, tuple[str, ...]]:
    return model, ()


@pytest.fixture(scope="module")
def model() -> Model:
    return checkpoints.load()


def asked(model: Model) -> tuple[Tensor, Tensor, Conditioning]:
    """What the network of the shipped model is asked."""
    cond = encode_prompts(Runtime(model), ["a frog", "a red rabbit"])
    return noise(2, model.vae.config.latent_channels, 8, 8), torch.tensor([500.0, 200.0]), cond


@pytest.mark.parametrize("name", backends.names())
@torch.no_grad()
def test_parity(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(int8, "SMALL", 0)  # 8 bits in spite of its size
    choice = choose_backend(name, CPU)
    if choice.name != name:
        pytest.skip(choice.warnings[0])
    model = checkpoints.load()
    question = asked(model)
    expected = model.backbone(*question)
    made, warnings = OnBackend(as_it_is, choice, rehearse)(model, Request())
    assert warnings == ()
    assert relative(made.backbone(*question), expected) < BOUNDS[name]
    devices.begin_turn(model.backbone)  # which a backend may have given up
    assert relative(model.backbone(*question), expected) < 1e-5  # the model itself stays


def test_a_small_network_is_not_rounded(model: Model) -> None:
    assert int8.prepare(model, rehearse)[0].backbone is model.backbone


def test_names_that_stand_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_backend("auto", CPU, 1000).name == EAGER
    assert choose_backend("fast", torch.device("mps")).name == EAGER
    monkeypatch.setattr(backends, "has_amx", lambda: False)
    monkeypatch.setattr(int8, "unsuitable", lambda device: "int8 needs a moon")
    replaced = choose_backend("fast", CPU, 1000)
    assert replaced.name == EAGER
    assert replaced.warnings == ("int8 needs a moon; the backend is eager",)
    with pytest.raises(ValueError, match="unknown backend 'inte8'; choices, nearest first: int8"):
        choose_backend("inte8", CPU)


@pytest.mark.parametrize("able", [{}, {"avx512_vnni": False}])
def test_a_cpu_without_vnni_has_no_int8(
    able: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert int8.unsuitable(CPU) == "int8 needs a CPU with AVX-512 VNNI"
    assert int8.unsuitable(torch.device("cuda")) == "int8 runs on a CPU, not on cuda"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("AVX2", False), ("AVX512_CORE", False), ("AVX512_CORE_BF16", True), ("ALL", True)],
)
def test_a_limit_of_onednn_is_obeyed(
    limit: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    able = {"avx512_bf16": True, "avx512_vnni": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert native_bfloat16() is expected
    assert (int8.unsuitable(CPU) is None) is expected
    chosen = precision.choose_dtype(CPU, "auto", torch.float32).dtype
    assert chosen == (torch.bfloat16 if expected else torch.float32)


# ---------------------------------------------------------------- 8 bits


@pytest.mark.skipif(int8.unsuitable(CPU) is not None, reason="needs VNNI")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(96, 192),
        nn.Linear(96, 192, bias=False),
        nn.Conv2d(96, 64, 3, padding=1),
        nn.Conv2d(96, 64, 3, stride=2),
        nn.Conv2d(96, 64, 1, bias=False),
    ],
    ids=str,
)
@torch.no_grad()
def test_a_layer_in_8_bits(layer: nn.Module, dtype: torch.dtype) -> None:
    small = {nn.Linear: int8.Linear, nn.Conv2d: int8.Conv2d}[type(layer)](layer, int8.Quantizer())
    for make in (lambda x: x, F.silu, lambda x: x - 3, lambda x: x * 1e-6, lambda x: x + 5):
        x = noise(2, 30, 96) if isinstance(layer, nn.Linear) else noise(2, 96, 9, 7)
        x = make(x)
        found = small(x.to(dtype))
        assert found.dtype == dtype and found.shape == layer(x).shape
        assert relative(found, layer(x)) < 0.03
    zeros = torch.zeros_like(x)
    assert relative(small(zeros.to(dtype)) + 1, layer(zeros) + 1) < 0.01


@torch.no_grad()
def test_an_input_is_rounded_once_for_layers_that_share_it() -> None:
    quantizer, x = int8.Quantizer(), noise(2, 3, 8)
    numbers, scale, zero = quantizer(x)
    assert quantizer(x)[0] is numbers
    assert quantizer(x.clone())[0] is not numbers
    assert float(((numbers.float() - zero) * scale - x).abs().max()) <= scale * 0.501
    assert numbers.min() == 0 and numbers.max() == 255


@pytest.mark.skipif(int8.unsuitable(CPU) is not None, reason="needs VNNI")
@torch.no_grad()
def test_a_picture_in_8_bits_does_not_depend_on_its_batch(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "SMALL", 0)
    network = int8.prepare(model, rehearse)[0].backbone
    x, t, cond = asked(model)
    together = network(x * torch.tensor([1.0, 50.0]).view(2, 1, 1, 1), t, cond)
    assert torch.equal(network(x[:1], t[:1], cond[:1]), together[:1])


@pytest.mark.skipif(int8.unsuitable(CPU) is not None, reason="needs VNNI")
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@torch.no_grad()
def test_what_is_not_finite_stays_so_in_8_bits(wrong: float) -> None:
    layer = int8.Linear(nn.Linear(96, 192), int8.Quantizer())
    x = noise(2, 3, 96)
    x[1, 0, 5] = wrong
    assert not torch.isfinite(layer(x)).all()


# ---------------------------------------------------------------- attention in bfloat16


@pytest.mark.parametrize(
    ("queries", "keys", "width"), [(300, 300, 40), (128, 1000, 16), (4096, 4, 8)]
)
@torch.no_grad()
def test_attention_in_blocks(
    queries: int, keys: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = (noise(2, 3, n, width, seed=n) for n in (queries, keys, keys))
    expected = F.scaled_dot_product_attention(q, k, v)
    for block in (2**10, 2**20):
        monkeypatch.setattr(blocks, "BLOCK", block)
        assert relative(blocks.attend_in_blocks(q, k, v), expected) < 1e-5
    halves = [x.bfloat16() for x in (q, k, v)]
    assert relative(blocks.attend(*halves), expected) < 0.02
    assert blocks.attend(*halves).dtype == torch.bfloat16


@pytest.mark.parametrize("amx", [False, True])
@torch.no_grad()
def test_with_amx_the_fused_kernel_is_used(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "has_amx", lambda: amx)
    used: list[bool] = []
    in_blocks = blocks.attend_in_blocks
    monkeypatch.setattr(
        blocks, "attend_in_blocks", lambda *q: (used.append(True), in_blocks(*q))[1]
    )
    x = noise(1, 2, 300, 8).bfloat16()
    blocks.attend(x, x, x)
    assert bool(used) is not amx


# ---------------------------------------------------------------- threads


def test_threads_by_the_size_of_the_work(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert threads_for(model) == 1
    monkeypatch.setattr("pellucid.runtime.threads.SMALL", 1000)
    assert threads_for(model) == 8
    monkeypatch.setattr("pellucid.runtime.threads.SMALL", SMALL)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_for(model) == 8  # as they are set


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_leave_the_core_to_others(given: str | None, expected: str) -> None:
    code = (
        "import sys, os, pellucid.__main__; assert 'torch' not in sys.modules;"
        "print(os.environ['OMP_WAIT_POLICY'])"
    )
    own = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=own if given is None else own | {"OMP_WAIT_POLICY": given},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == expected


# ---------------------------------------------------------------- the command


def draw(call: Call, folder: Path, *words: str) -> tuple[int, str]:
    status, _, err = call("generate", "a frog", "--steps", "2", "--out", folder, *words)
    return status, err


def test_fast_and_exact(tmp_path: Path, call: Call) -> None:
    for words in (("--fast",), ("--exact",), ("--backend", "eager", "--threads", "1")):
        status, err = draw(call, tmp_path, *words)
        assert status == 0, err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--fast", "--exact"), "--fast and --exact cannot be combined"),
        (("--fast", "--backend", "eager"), "--fast chooses the backend"),
        (("--exact", "--dtype", "float32"), "--exact chooses the number type"),
        (("--threads", "0"), "--threads must be between 1 and 1024, got 0"),
        (("--backend", "quick"), "unknown backend 'quick'; choices, nearest first:"),
    ],
)
def test_contradictions(words: tuple[str, ...], message: str, tmp_path: Path, call: Call) -> None:
    status, err = draw(call, tmp_path, *words)
    assert status == 2 and message in err


def test_text_is_read_in_float32() -> None:
    assert precision.dtype_of(open_model(None, device="cpu").text) == torch.float32
    half = open_model(None, device="cpu", dtype="bf16")
    assert precision.dtype_of(half.text) == torch.bfloat16
