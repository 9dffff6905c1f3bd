"""The server computes as the command line does: the same backends, the same turns in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from pellucid import checkpoints
from pellucid.adapters import on_backend
from pellucid.forecast import FEWEST
from pellucid.model import Model
from pellucid.pipeline import generate
from pellucid.request import Request
from pellucid.runtime import backends, devices, memory
from pellucid.runtime.backends import _compiled
from pellucid.runtime.devices import weight_bytes
from pellucid.serve.acceptance import Acceptance, Asked
from pellucid.serve.configuration import Configuration
from pellucid.serve.engine import Engine
from pellucid.serve.library import Library
from pellucid.serve.models_kept import Kept
from pellucid.serve.pictures import PictureStore
from pellucid.serve.worker import Draw, Ended, ModelSpec, Worker, WorkerJob, WorkerOptions
from references import parts_of

REQUEST = Request(prompt="a rabbit", seed=1)


class Alone(Worker):
    """A worker in this process. drawn: draws REQUEST with the model of a file."""

    def drawn(self, path: Path, request: Request = REQUEST) -> Ended:
        self.messages: list[Any] = []
        task = WorkerJob("a", "generate", request, {}, ModelSpec(path.stem, path, (0, 0)))
        self.connection.send = self.messages.append  # type: ignore[method-assign, assignment]
        self.read(Draw([task]))
        (ended,) = (each for each in self.messages if isinstance(each, Ended))
        assert ended.state == "done", ended.error
        return ended

    def image(self, ended: Ended) -> np.ndarray[Any, Any]:
        path = self.pictures.path(ended.pictures[0].picture)
        assert path is not None
        return np.asarray(Image.open(path)).astype(int)


class Quiet:
    """The server's end of a pipe from which nothing comes."""

    send: Callable[[Any], None]

    def poll(self) -> bool:
        return False


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Callable[..., Alone]]:
    (tmp_path / "pictures").mkdir()

    def make(backend: str = "auto", size: int = 2**30) -> Alone:
        options = WorkerOptions("cpu", "float32", size, tmp_path, None, backend)
        return Alone(Quiet(), options)  # type: ignore[arg-type]

    yield make
    torch.set_num_threads(1)


def test_a_small_model_is_computed_as_it_is(
    alone: Callable[..., Alone], model_file: Path, model: Model
) -> None:
    drawing = alone()
    ended = drawing.drawn(model_file)
    assert (ended.backend, ended.warnings) == ("eager", [])
    *_, last = generate(checkpoints.load(model_file), REQUEST, on_backend(model, "auto"))
    assert last.images is not None
    assert (drawing.image(ended) == np.asarray(last.images[0])).all()


def test_a_large_model_is_computed_by_openvino(
    alone: Callable[..., Alone], model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if _compiled.unsuitable(torch.device("cpu")):
        pytest.skip("needs openvino")
    plain = alone("eager")
    expected = plain.image(plain.drawn(model_file))
    monkeypatch.setattr(backends, "LARGE", 0)
    drawing = alone(size=0)  # one model at a time
    ended = drawing.drawn(model_file)
    assert ended.backend == "openvino"
    assert abs(drawing.image(ended) - expected).max() <= 1
    network = next(iter(drawing.chosen))
    assert any(made.network is network for made in _compiled._made)
    other = model_file.with_name("second.safetensors")
    other.write_bytes(model_file.read_bytes())
    drawing.drawn(other, REQUEST.model_copy(update={"seed": 2}))
    assert not any(made.network is network for made in _compiled._made)  # its memory is free


def test_a_network_that_a_backend_cannot_compute(
    alone: Callable[..., Alone], model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(model: Model, rehearse: Any) -> Any:
        raise backends.Unsuitable("it is round")

    monkeypatch.setattr("pellucid.runtime.backends.int8.unsuitable", lambda device: None)
    monkeypatch.setattr("pellucid.runtime.backends.int8.prepare", prepare)
    ended = alone("int8").drawn(model_file)
    assert ended.backend == "eager"
    assert ended.warnings == ["it is round; the backend is eager"]


def test_parts_take_turns_where_memory_is_short(
    alone: Callable[..., Alone], model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "half.safetensors"  # what is read in its own type needs no memory
    checkpoints.save(model, path, torch.float16)
    monkeypatch.setattr("pellucid.checkpoints.contents.IN_TURNS", {*parts_of(model), "vision"})
    whole = alone()
    expected = whole.image(whole.drawn(path))
    room = max(weight_bytes(part) for part in parts_of(model).values()) + 2**12
    monkeypatch.setattr(memory, "free_memory", lambda *_, **__: room)
    drawing = alone()
    assert (drawing.image(drawing.drawn(path)) == expected).all()
    (network,) = drawing.chosen
    assert devices.takes_turns(network)
    assert 0 < drawing.kept.size() < room  # what is there now


def test_other_models_make_room_before_parts_take_turns(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, short = Kept(2**30), checkpoints.load(model_file)
    first = kept.get("first", lambda: checkpoints.load(model_file))
    for part in parts_of(short).values():
        devices.take_turns(part, lambda part: None)
    found = iter([short, first])
    assert kept.get("second", lambda: next(found)) is first
    assert len(kept) == 1  # the first one is gone, and the second is there whole


def test_threads_are_those_of_the_model(
    alone: Callable[..., Alone], model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small model has one thread; the next, larger one has all again, and so has a kept one."""
    found = iter((lambda: 1, torch.get_num_threads))
    monkeypatch.setattr("pellucid.opening.threads_for", lambda model: next(found)())
    drawing = alone()
    drawing.threads = 3
    small, large = (ModelSpec(name, model_file, (version, 0)) for version, name in enumerate("ab"))
    counts = []
    for spec in (small, large, small, large):
        drawing.opened(spec)
        counts.append(torch.get_num_threads())
    assert counts == [1, 3, 1, 3]


def test_fast_forecasts_where_it_can(models: Path, tmp_path: Path) -> None:
    def forecast(backend: str, **fields: Any) -> bool:
        limits = Configuration(data=tmp_path, models=(models,), model="tiny", backend=backend)
        accepting = Acceptance(limits, Library((models,)), PictureStore(tmp_path / "pictures"))
        request = Request.model_validate({"prompt": "a rabbit", "steps": 20} | fields)
        job = accepting.job(Asked(request))
        assert job.request.get("forecast", False) is job.resolved["forecast"]
        assert job.resolved.get("forecast_more", False) is job.resolved["forecast"]
        return bool(job.resolved["forecast"])

    assert forecast("fast")
    assert not forecast("auto")
    assert not forecast("fast", forecast=False)
    assert not forecast("fast", steps=FEWEST - 1)


def test_the_backend_at_work_is_shown(client: TestClient, drawn: Callable[..., Any]) -> None:
    drawn({"prompt": "a rabbit", "seed": 1}, model="tiny")
    listed = {each["name"]: each for each in client.get("/api/models").json()["models"]}
    assert listed["tiny"]["backend"] == "eager"
    assert client.get("/api/models/tiny/capabilities").json()["backend"] == "eager"


Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("words", "settings", "expected"),
    [
        ([], "", ("auto", "auto")),
        (["--fast"], "", ("auto", "fast")),
        (["--exact"], 'dtype = "bfloat16"\nbackend = "fast"', ("float32", "eager")),
        (["--fast"], 'dtype = "bfloat16"\nbackend = "eager"', ("bfloat16", "fast")),
        (["--backend", "int8"], "", ("auto", "int8")),
        ([], 'backend = "openvino"', ("auto", "openvino")),
    ],
)
def test_settings(
    words: list[str],
    settings: str,
    expected: tuple[str, str],
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"[serve]\n{settings}\n")
    monkeypatch.setenv("PELLUCID_CONFIG", str(file))
    status, out, err = call("serve", "--print-config", *words)
    assert status == 0, err
    shown = json.loads(out)
    assert (shown["dtype"], shown["backend"]) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fast", "--exact"], "--fast and --exact cannot be combined"),
        (["--fast", "--backend", "eager"], "--fast chooses the backend"),
        (["--exact", "--dtype", "float16"], "--exact chooses the number type"),
        (["--backend", "quick"], "unknown backend 'quick'"),
        (["--dtype", "float8"], "dtype must be one of auto, "),
    ],
)
def test_settings_that_are_refused(
    words: list[str], message: str, refused: Callable[..., str]
) -> None:
    assert message in refused("serve", "--print-config", *words)


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    configuration = partial(Configuration, data=tmp_path)
    with pytest.raises(ValueError, match="device must be one of auto, cpu"):
        Engine(configuration(devices=("moon",)))
    assert not (tmp_path / "queue.sqlite").exists()
