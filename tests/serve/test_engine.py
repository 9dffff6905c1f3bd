"""The engine without a worker process: what it keeps, says and hands over."""

from __future__ import annotations

import os
import socket
import sqlite3
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sending import png
from starlette.testclient import TestClient

from pellucid.images.data_url import to_data_url
from pellucid.request import Request
from pellucid.serve import models_kept, server
from pellucid.serve.acceptance import Asked
from pellucid.serve.app import application
from pellucid.serve.configuration import Configuration
from pellucid.serve.engine import Engine, Event, Live
from pellucid.serve.queue import Job, Picture, Queue
from pellucid.serve.worker import Draw, Ended, StepReport, Worker, WorkerOptions

OLD = 1_000_000.0
"""Seconds since 1970, long ago."""


@pytest.fixture
def idle(models: Path, tmp_path: Path) -> Iterator[Engine]:
    """An engine whose worker is not started."""
    configuration = Configuration(
        data=tmp_path, models=(models,), model="tiny", devices=("cpu",), names=("testserver",)
    )
    engine = Engine(configuration)
    yield engine
    engine.workers.clear()  # they were never started
    engine.stop()


def submitted(engine: Engine, **fields: Any) -> Job:
    (job,) = engine.submit(Asked(Request(prompt="a rabbit", **fields)))
    return job


def stored(engine: Engine, shade: int) -> str:
    """A picture in the store that was put there long ago."""
    name = engine.pictures.add(png(Image.new("L", (16, 16), shade)))
    path = engine.pictures.path(name)
    assert path is not None
    os.utime(path, (OLD, OLD))
    return name


def made(engine: Engine, job: Job, name: str) -> None:
    engine.queue.take([job.id])
    engine.end(Ended(job.id, "done", None, [Picture(name, 1, 16, 16)]))


@pytest.mark.parametrize(
    ("name", "said"),
    [("", "File exists"), ("pictures", "File exists"), ("queue.sqlite", "file is not a database")],
)
def test_a_data_folder_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    data = tmp_path / "data"
    (data / name).parent.mkdir(exist_ok=True)
    (data / name).write_text("a file of something else")
    sockets: list[socket.socket] = []
    real = server.bound
    monkeypatch.setattr(server.logs, "configure", lambda form: None)
    monkeypatch.setattr(server, "bound", lambda c: sockets.append(real(c)) or sockets[0])
    with pytest.raises(ValueError, match=f"the data folder .*data cannot be used: {said}"):
        server.run(Configuration(data=data, port=0), print, print)
    assert sockets[0].fileno() == -1  # another server can have the address


def test_a_picture_that_a_job_starts_from_is_kept(idle: Engine) -> None:
    one, two = stored(idle, 1), stored(idle, 2)
    first = submitted(idle)
    made(idle, first, one)
    second = submitted(idle, image=one)
    made(idle, second, two)
    for job, kept in ((first, [one, two]), (second, [one])):
        idle.mark(job.id, deleted=1.0)
        assert idle.forget(job.id)
        assert [name for name in (one, two) if idle.pictures.path(name)] == kept


def test_pictures_that_no_job_uses_are_deleted_at_the_start(idle: Engine) -> None:
    drawn, start, mask, unused = (stored(idle, shade) for shade in (10, 20, 30, 40))
    recent = idle.pictures.add(png(Image.new("L", (16, 16), 50)))
    made(idle, submitted(idle, image=start, mask=mask), drawn)
    idle.workers.clear()  # so that nothing is drawn
    idle.start()
    kept = {name for name in (drawn, start, mask, recent, unused) if idle.pictures.path(name)}
    assert kept == {drawn, start, mask, recent}


def test_a_damaged_file_is_replaced(idle: Engine) -> None:
    """As a power failure leaves it: the name without the bytes."""
    data = png(Image.new("L", (16, 16), 7))
    path = idle.pictures.path(idle.pictures.add(data))
    assert path is not None
    path.write_bytes(b"")
    assert idle.pictures.path(idle.pictures.add(data)) == path and path.read_bytes() == data


def test_only_the_end_of_a_job_carries_it(idle: Engine) -> None:
    """So metrics count it once, however often its marks change afterwards."""
    job, seen = submitted(idle), list[Event]()
    with idle.watch(seen.append):
        made(idle, job, stored(idle, 1))
        idle.mark(job.id, favourite=True)
    told = [event.job for event in seen if event.kind == "job"]
    assert [each and each.state for each in told] == ["done", None]
    assert told[0] is not None and [each.seed for each in told[0].pictures] == [1]


def test_a_change_of_the_order_is_an_event(idle: Engine) -> None:
    jobs = [submitted(idle) for _ in range(3)]
    seen: list[Event] = []
    with idle.watch(seen.append):
        idle.mark(jobs[2].id, priority=5)
        assert Event("queue") in seen
        seen.clear()
        idle.cancel(jobs[0].id)
        assert Event("queue") in seen
        seen.clear()
        idle.queue.take([jobs[1].id])
        idle.crashed([jobs[1].id], "it ended")
        assert Event("queue") in seen


def test_a_job_in_the_bin_is_not_drawn(idle: Engine) -> None:
    job = submitted(idle)
    idle.mark(job.id, deleted=1.0)
    assert idle.queue.next(10) == []
    found = idle.queue.job(job.id)
    assert found is not None and (found.state, found.deleted) == ("cancelled", 1.0)
    assert idle.retry(job.id) and [each.id for each in idle.queue.next(10)] == [job.id]


def test_what_is_cancelled_before_it_is_handed_over_is_not_drawn(
    idle: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, sent = idle.workers[0], list[Any]()
    submitted(idle)
    (job,) = idle.next_jobs("cpu")

    class Ended:
        def is_alive(self) -> bool:
            return False

    worker._process = Ended()
    monkeypatch.setattr(worker, "_begin", lambda: idle.cancel(job.id))  # while the next one starts
    monkeypatch.setattr(worker, "send", sent.append)
    worker._draw([job])
    found = idle.queue.job(job.id)
    assert found is not None and found.state == "cancelled"
    assert not any(isinstance(message, Draw) for message in sent) and not worker.open


@pytest.mark.parametrize("fault", ["request", "server"])
@pytest.mark.parametrize(
    ("path", "theirs"), [("/sdapi/v1/txt2img", 422), ("/v1/images/generations", 400)]
)
def test_the_status_says_whose_fault_it_was(
    idle: Engine, path: str, theirs: int, fault: Any
) -> None:
    def fail(event: Event) -> None:
        if event.kind == "job":
            idle.end(Ended(event.id, "failed", "it took longer than 5 seconds", fault=fault))

    with idle.watch(fail):
        reply = TestClient(application(idle)).post(path, json={"prompt": "a rabbit"})
    assert reply.status_code == (500 if fault == "server" else theirs), reply.text
    (job,) = TestClient(application(idle)).get("/api/jobs").json()["jobs"]
    assert (job["fault"], job["error"]) == (fault, "it took longer than 5 seconds")


def test_a_stream_sends_the_steps_of_a_job_that_has_ended(
    idle: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job is read for the first time when it has ended, as on a busy machine."""
    name, small = stored(idle, 1), to_data_url(Image.new("RGB", (8, 8)), "JPEG")
    real, drawn = idle.queue.job, list[str]()

    def late(id: str) -> Job | None:
        if not drawn:
            drawn.append(id)
            idle.queue.take([id])
            idle.live[id] = Live()
            for step in (1, 2, 3, 4):
                idle.stepped(StepReport(id, step, 4, 0, 1, [small], [small]))
            idle.end(Ended(id, "done", None, [Picture(name, 1, 16, 16)]))
        return real(id)

    monkeypatch.setattr(idle.queue, "job", late)
    body = {"prompt": "a rabbit", "stream": True, "partial_images": 2}
    text = TestClient(application(idle)).post("/v1/images/generations", json=body).text
    kinds = [line for line in text.splitlines() if line.startswith("event: ")]
    assert [kind.split(".")[1] for kind in kinds] == ["partial_image"] * 2 + ["completed"]


def test_a_queue_of_an_older_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "queue.sqlite"
    queue, job = Queue(path), Job("generate", "native", "tiny", {"prompt": "a rabbit"})
    queue.add([job])
    queue.close()
    with sqlite3.connect(path) as db:
        db.execute("alter table jobs drop column fault")
    queue = Queue(path)
    assert queue.finish(job.id, "failed", "no", fault="server")
    found = queue.job(job.id)
    assert found is not None and found.fault == "server"
    assert queue.retry(job.id)
    found = queue.job(job.id)
    assert found is not None and (found.fault, found.error) == (None, None)
    queue.close()


def test_out_of_memory_frees_the_memory(
    idle: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(None, WorkerOptions("cpu", "float32", 10**12, tmp_path, None))  # type: ignore[arg-type]
    for name in ("tiny", "other"):
        spec = idle.library.model(name)
        worker.kept.get(name, lambda spec=spec: spec.outline)
    held: list[weakref.ref[Any]] = []
    freed: list[bool] = []

    def draw(task: Any) -> None:
        tensors = {1}
        held.append(weakref.ref(tensors))
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(worker, "draw", draw)
    monkeypatch.setattr(models_kept, "give_back_memory", lambda: freed.append(held[0]() is None))
    ended = worker.ended(idle.acceptance.task(submitted(idle)))
    assert ended.error == "not enough memory; use a smaller size or count"
    assert (len(worker.kept), freed) == (1, [True])
