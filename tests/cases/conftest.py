"""Models that the cases share, thin and random, in the layouts that people have."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from inputs import SHORT

from pellucid import checkpoints
from pellucid.model import Model
from references import model_of


@pytest.fixture(scope="session")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Stable Diffusion 1, thin and short, with CLIP's whole vocabulary."""
    return model_of("sd1", vocabulary=49408, **SHORT)


@pytest.fixture(scope="session")
def sd1_file(sd1: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as one file."""
    path = tmp_path_factory.mktemp("sd1") / "sd1.safetensors"
    checkpoints.save(sd1, path, torch.float16, to="ldm")
    return path


@pytest.fixture(scope="session")
def sd1_folder(sd1: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a folder of diffusers'. Tests change copies of it (`inputs.copy_folder`)."""
    path = tmp_path_factory.mktemp("sd1") / "folder"
    checkpoints.save(sd1, path, torch.float16, to="diffusers")
    return path


@pytest.fixture(scope="session")
def sdxl_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion XL, thin, as one file: towers of width 64 and 128."""
    path = tmp_path_factory.mktemp("sdxl") / "sdxl.safetensors"
    checkpoints.save(model_of("sdxl", vocabulary=49408), path, torch.float16, to="ldm")
    return path


@pytest.fixture(scope="session")
def sd1_read(sd1_file: Path) -> Model:
    """What is in `sd1_file`, read once."""
    return checkpoints.load(sd1_file)


@pytest.fixture
def ids(
    call: Any, sd1_file: Path, sd1_read: Model, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[int]]:
    """The token numbers of a prompt as `pellucid tokens` gives them, without bos and eos."""
    real = checkpoints.load

    def load(path: Any = None, *args: Any, **options: Any) -> Model:
        return sd1_read if path == sd1_file else real(path, *args, **options)

    monkeypatch.setattr(checkpoints, "load", load)  # only because it is quicker

    def numbers(prompt: str, *options: object, model: Path = sd1_file) -> list[int]:
        status, out, err = call("tokens", prompt, "--model", model, "--json", *options)
        assert status == 0, err
        chunks = json.loads(out)["prompts"][0]["readings"][0]["chunks"]
        return [token["id"] for chunk in chunks for token in chunk]

    return numbers


@pytest.fixture
def drawn(call: Any, model_file: Path, tmp_path: Path) -> Callable[..., tuple[dict[str, Any], str]]:
    """The request that `generate` records for these options with the tiny model, and its stderr."""

    def draw(*options: object) -> tuple[dict[str, Any], str]:
        out = ("--out", tmp_path / "drawn", "--json")
        status, text, err = call("generate", *options, "--model", model_file, *out)
        assert status == 0, err
        request: dict[str, Any] = json.loads(text)["images"][0]["request"]
        return request, err

    return draw


@pytest.fixture
def within() -> Callable[[float], AbstractContextManager[None]]:
    """Fails what takes longer than so many seconds, and stops it."""

    @contextmanager
    def limit(seconds: float) -> Iterator[None]:
        def late(*_: object) -> None:
            pytest.fail(f"not done within {seconds} seconds")  # no Exception, so nobody catches it

        before = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    return limit


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """os.umask, put back afterwards."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test in which a step is drawn: what can be known before must be said before."""

    def generate(*_: object, **__: object) -> None:
        raise AssertionError("a step was drawn first")

    monkeypatch.setattr("pellucid.pipeline.generate", generate)
