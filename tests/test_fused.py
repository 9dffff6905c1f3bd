"""The backend `fused`: compiled C code for small networks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pellucid import checkpoints
from pellucid.backbones.unet import UNet, UNetConfig
from pellucid.diffusion import Conditioning
from pellucid.model import Model
from pellucid.opening import open_model
from pellucid.pipeline import generate
from pellucid.rehearsal import rehearse
from pellucid.request import Request
from pellucid.runtime.backends import _native, choose_backend, fused, packed

CPU = torch.device("cpu")
needs = pytest.mark.skipif(
    fused.unsuitable(CPU) is not None, reason="needs bfloat16 and a C compiler"
)
SMALL = UNetConfig(
    in_channels=8,
    out_channels=8,
    block_out_channels=(32, 64, 96),
    layers_per_block=2,
    transformer_layers=(0, 2, 1),
    heads=(1, 2, 2),
    cross_attention_dim=40,
    norm_groups=8,
)
FILM = replace(
    SMALL, film=True, pooled_dim=24, map_channels=5, map_size=4, use_linear_projection=True
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture
def without_amx(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_native, "has_amx", lambda: False)
    _native.library.cache_clear()
    yield
    _native.library.cache_clear()


def networks(config: UNetConfig) -> tuple[UNet, UNet, packed.Packed]:
    """In float32, in bfloat16, and as the backend computes that."""
    torch.manual_seed(0)
    exact = UNet(config).eval()
    half = UNet(config).eval()
    half.load_state_dict(exact.state_dict())
    half.bfloat16()
    return exact, half, packed.Packed(half, fused.FusedUNet(half, packed.packed(half)))


def asked(config: UNetConfig, batch: int, height: int, width: int, tokens: int, seed: int) -> Any:
    cond = Conditioning(
        noise(batch, tokens, config.cross_attention_dim, seed=seed).bfloat16(),
        noise(batch, config.pooled_dim, seed=seed).bfloat16() if config.pooled_dim else None,
    )
    t = torch.linspace(900, 100, batch)
    return noise(batch, config.in_channels, height, width, seed=seed).bfloat16(), t, cond


def like_float32(config: UNetConfig, *shape: int) -> None:
    exact, half, ours = networks(config)
    for seed in (1, 2):  # another text in the same program
        x, t, cond = asked(config, *shape, seed=seed)
        pooled = None if cond.pooled is None else cond.pooled.float()
        expected = exact(x.float(), t, Conditioning(cond.tokens.float(), pooled))
        assert relative(ours(x, t, cond), expected) < relative(half(x, t, cond), expected)


@needs
@pytest.mark.parametrize("config", [SMALL, FILM], ids=["plain", "film"])
@pytest.mark.parametrize(
    "shape", [(2, 8, 8, 7), (1, 7, 5, 20), (3, 4, 16, 77), (2, 8, 32, 5)], ids=str
)
@torch.no_grad()
def test_nearer_to_float32_than_eager_bfloat16(config: UNetConfig, shape: tuple[int, ...]) -> None:
    like_float32(config, *shape)


@needs
@torch.no_grad()
def test_without_amx(without_amx: None) -> None:
    like_float32(FILM, 2, 8, 16, 7)


@needs
@torch.no_grad()
def test_a_picture_does_not_depend_on_its_batch() -> None:
    _, _, ours = networks(FILM)
    x, t, cond = asked(FILM, 5, 8, 8, 9, seed=1)
    together = ours(x, t, cond)
    for i in range(5):
        assert torch.equal(ours(x[i : i + 1], t[i : i + 1], cond[i : i + 1]), together[i : i + 1])


@needs
@pytest.mark.parametrize("size", [(16, 16), (9, 13)], ids=str)
@torch.no_grad()
def test_the_second_stage(size: tuple[int, int]) -> None:
    model = checkpoints.load()
    exact, half = (checkpoints.load().second_stage for _ in range(2))
    assert model.second_stage is not None and exact is not None and half is not None
    half.bfloat16()
    small, x = noise(2, 3, *size).clamp(-1, 1), noise(2, 3, *(4 * side for side in size))
    t, added = torch.tensor([500.0, 900.0]), torch.tensor([0.0, 0.1])
    expected = exact(x, t, small, added)
    given = x.bfloat16(), t, small.bfloat16(), added
    assert relative(fused.SecondStage(half)(*given), expected) < relative(half(*given), expected)


@needs
@torch.no_grad()
def test_what_is_not_finite_stays_so() -> None:
    _, _, ours = networks(SMALL)
    x, t, cond = asked(SMALL, 2, 8, 8, 7, seed=1)
    x[1, 0, 3, 3] = float("nan")
    assert not torch.isfinite(ours(x, t, cond)).all()


@needs
def test_the_models_pictures() -> None:
    model = open_model(None, device="cpu", dtype="bfloat16")
    made, warnings = fused.prepare(model, rehearse)
    assert warnings == ()
    assert isinstance(made.second_stage, fused.SecondStage)
    other, _ = packed.prepare(model, rehearse)
    request = Request(prompt="a frog", seed=1, steps=2)

    def pixels(model: Model) -> Tensor:
        *_, last = generate(model, request)
        assert last.images is not None
        return torch.frombuffer(bytearray(last.images[0].tobytes()), dtype=torch.uint8).float()

    assert (pixels(made) - pixels(other)).square().mean() < 10  # 38 dB
    assert fused.prepare(model, rehearse)[0].second_stage is made.second_stage


@needs
def test_kept_networks_go_with_their_models() -> None:
    before = len(fused._made)
    model = checkpoints.load(dtype=torch.bfloat16)
    fused.prepare(model, rehearse)
    assert len(fused._made) == before + 2
    del model
    assert len(fused._made) == before


# ---------------------------------------------------------------- machines


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setattr(_native, "folder", lambda: tmp_path / "native")
    _native.library.cache_clear()
    yield tmp_path / "native"
    _native.library.cache_clear()


def test_without_a_compiler(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(fused, "native_bfloat16", lambda: True)
    assert fused.unsuitable(CPU) == (
        "fused needs compiled code: there is no C compiler (cc, gcc or clang)"
    )
    assert choose_backend("auto", CPU, 1000, torch.bfloat16).name != "fused"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'x.c:1: error: no' >&2; exit 1", "does not compile it: x.c:1: error: no"),
        ("exit 0", "No such file"),
    ],
)
def test_a_compiler_that_fails(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(compiler))
    with pytest.raises(_native.NoLibrary, match=message):
        _native.library()


@needs
@pytest.mark.parametrize("content", [None, b"", b"no library", b"half"])
def test_a_cache_that_is_bad(fresh: Path, content: bytes | None) -> None:
    if content is None:
        fresh.write_bytes(b"")
    else:
        _native.library()
        (made,) = fresh.iterdir()
        half = made.read_bytes()[: made.stat().st_size // 2]
        made.unlink()
        made.write_bytes(half if content == b"half" else content)
        _native.library.cache_clear()
    assert _native.library().allowed() == 0


@needs
def test_compiled_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _native.library()
    (made,) = fresh.iterdir()
    _native.library.cache_clear()
    refuse: Callable[..., Any] = lambda *words: pytest.fail("compiled again")  # noqa: E731
    monkeypatch.setattr(_native, "compiled", refuse)
    assert _native.library().allowed() == 0 and os.listdir(fresh) == [made.name]
