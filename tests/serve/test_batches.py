"""Equal jobs of several clients are drawn in one batch, and each is as if it were alone."""

from __future__ import annotations

import io
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sending import LONG
from starlette.testclient import TestClient

from pellucid import checkpoints
from pellucid.model import Model
from pellucid.pipeline import generate
from pellucid.plan import batch_key
from pellucid.request import Request, resolve
from pellucid.serve import worker
from pellucid.serve.acceptance import Asked
from pellucid.serve.configuration import Configuration
from pellucid.serve.engine import Engine
from pellucid.serve.worker import (
    Cancel,
    Draw,
    Ended,
    ModelSpec,
    StepReport,
    Worker,
    WorkerJob,
    WorkerOptions,
)


def waiting(client: TestClient, *requests: dict[str, Any], **more: Any) -> list[str]:
    """Jobs that wait in a paused queue."""
    client.patch("/api/queue", json={"paused": True})
    bodies = [{"request": {"prompt": "a rabbit", "seed": 1} | each} | more for each in requests]
    return [client.post("/api/jobs", json=body).json()["id"] for body in bodies]


def test_equal_jobs_share_a_batch_and_their_pictures_are_the_same(
    client: TestClient, engine: Engine, model_file: Path
) -> None:
    fields = [{"seed": 3}, {"prompt": "a red apple", "count": 2}, {"seed": 3, "steps": 4}, {}]
    ids = waiting(client, *fields, previews=True)
    steps: list[StepReport] = []
    with engine.watch(lambda event: steps.append(event.step) if event.step else None):
        client.patch("/api/queue", json={"paused": False})
        for id in ids:
            assert engine.wait(id, LONG) is not None
    together = [ids[0], ids[1], ids[3]]
    assert [step.id for step in steps[:9]] == together * 3
    assert [step.step for step in steps[:9]] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [len(step.x0) for step in steps[:3]] == [1, 2, 1]
    model = checkpoints.load(model_file)
    for id, own in zip(ids, fields, strict=True):
        job = client.get(f"/api/jobs/{id}").json()
        assert (job["state"], job["error"]) == ("done", None)
        assert len(client.get(f"/api/jobs/{id}/steps").json()["steps"]) == own.get("steps", 3)
        request = Request.model_validate({"prompt": "a rabbit", "seed": 1} | own)
        *_, last = generate(model, request)
        assert last.images is not None
        assert [picture["seed"] for picture in job["pictures"]] == request_seeds(request)
        for picture, image in zip(job["pictures"], last.images, strict=True):
            stored = Image.open(io.BytesIO(client.get(picture["url"]).content))
            settings = client.get(f"{picture['url']}/settings").json()["request"]
            assert settings["prompt"] == request.prompt and settings["seed"] == picture["seed"]
            difference = np.asarray(stored).astype(int) - np.asarray(image)
            assert abs(difference).max() <= 1  # as in a batch of one request


def request_seeds(request: Request) -> list[int]:
    assert request.seed is not None
    return [request.seed + i for i in range(request.count)]


def test_a_cancelled_job_leaves_its_batch(client: TestClient, engine: Engine) -> None:
    first, second = waiting(client, {"steps": 60}, {"steps": 60, "seed": 2})

    def cancel(event: Any) -> None:
        if event.kind == "step" and event.id == first:
            engine.cancel(first)

    with engine.watch(cancel):
        client.patch("/api/queue", json={"paused": False})
        jobs = [engine.wait(id, LONG) for id in (first, second)]
    assert [job and (job.state, len(job.pictures)) for job in jobs] == [
        ("cancelled", 0),
        ("done", 1),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 5},
        {"guidance": 4},
        {"sampler": "ddim"},
        {"width": 32},
        {"negative_prompt": "a frog " * 60},
        {"prompt": "a rabbit AND a frog"},
        {"mix": (("a frog", 1),)},
        {"walk": "a frog"},
        {"variation_strength": 0.5},
        {"clip_guidance": 1, "sampler": "ddim"},
        {"sampler": "dpm_adaptive"},
        {"noise": "pink"},
        {"decoder": "tiny"},
        {"clip_skip": 2},
    ],
)
def test_what_is_not_equal_shares_no_batch(change: dict[str, Any], model: Model) -> None:
    plain = Request(prompt="a rabbit", seed=1)
    other = Request.model_validate({"prompt": "a rabbit", "seed": 1} | change)
    keys = [batch_key(model, resolve(model, each)) for each in (plain, other)]
    assert keys[0] is not None and keys[0] != keys[1]
    with pytest.raises(ValueError, match="cannot share a batch"):
        next(generate(model, plain, others=[other]))


def test_how_many_share_a_batch(models: Path, tmp_path: Path) -> None:
    """At most as many pictures as `batch`; of one priority; none that were in a worker that ended."""

    def batches(**settings: Any) -> list[int]:
        folder = tmp_path / str(settings["batch"])
        configuration = Configuration(data=folder, models=(models,), model="tiny", **settings)
        engine = Engine(configuration)
        jobs = [Asked(Request(prompt="a rabbit", count=count)) for count in (1, 2, 1, 1)]
        jobs.insert(1, Asked(Request(prompt="a rabbit"), priority=-1))
        numbers = {job.id: number for number, job in enumerate(engine.submit(*jobs))}
        engine.crashed([list(numbers)[4]], "it ended")
        found = [numbers[job.id] for job in engine._batch("cpu")]
        engine.queue.close()
        engine._lock_file.close()
        return found

    assert batches(batch=1) == [0]
    assert batches(batch=2) == [0, 3]
    assert batches(batch=8) == [0, 2, 3]


@pytest.fixture
def alone(model_file: Path, tmp_path: Path) -> Any:
    """A worker in this process, and the server's end of its pipe."""
    ours, theirs = Pipe()
    (tmp_path / "pictures").mkdir()
    settings = WorkerOptions("cpu", "float32", 2**30, tmp_path, None)
    yield Worker(theirs, settings), ours
    ours.close()
    theirs.close()


def tasks(model_file: Path, *ids: str) -> list[WorkerJob]:
    spec = ModelSpec("tiny", model_file, (0, 0))
    requests = [Request(prompt="a rabbit", seed=seed) for seed in range(len(ids))]
    return [WorkerJob(id, "generate", own, {}, spec) for id, own in zip(ids, requests, strict=True)]


def ended(connection: Any) -> list[Ended]:
    found = []
    while connection.poll():
        message = connection.recv()
        found += [message] if isinstance(message, Ended) else []
    return found


def test_of_a_batch_that_fails_each_job_is_drawn_alone(
    alone: Any, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing, connection = alone
    whole = worker.generate

    def failing(*arguments: Any) -> Any:
        yield next(whole(*arguments))
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(worker, "generate", failing)
    connection.send(Cancel("b", True))  # it is read after the first step
    drawing.read(Draw(tasks(model_file, "a", "b", "c")))
    found = {each.id: (each.state, len(each.pictures)) for each in ended(connection)}
    assert found == {"a": ("done", 1), "b": ("cancelled", 1), "c": ("done", 1)}


def test_a_batch_is_as_large_as_the_memory_allows(
    alone: Any, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing, connection = alone
    counts = []
    whole = worker.generate
    monkeypatch.setattr(worker, "batch_size", lambda runtime, request: 2)
    monkeypatch.setattr(
        worker, "generate", lambda *given: counts.append(1 + len(given[4])) or whole(*given)
    )
    drawing.read(Draw(tasks(model_file, "a", "b", "c")))
    assert counts == [2]
    assert [(each.id, each.state) for each in ended(connection)] == [(id, "done") for id in "abc"]
