"""A server that is killed, again and again, loses no job and no picture.

SERVE_TEST_KILLS=20 python -m pytest tests/serve/test_kill.py     the long run
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from sending import LONG

KILLS = int(os.environ.get("SERVE_TEST_KILLS", "2"))
JOBS = 6


@contextmanager
def served(
    data: Path, models: Path, **settings: str
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server as a process of its own, and its address."""
    words = [
        "serve",
        "--port",
        "0",
        "--data",
        str(data),
        "--models",
        str(models),
        "--device",
        "cpu",
    ]
    environment = os.environ | {"PELLUCID_SERVE_MODEL": "tiny"}
    environment |= {f"PELLUCID_SERVE_{name.upper()}": value for name, value in settings.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "pellucid", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        yield address, process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def call(address: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(f"{address}api{path}", data, headers)) as reply:
        return json.load(reply)


def test_no_job_is_lost(models: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    data, asked = tmp_path / "data", dict[str, int]()
    for _ in range(KILLS):
        with served(data, models) as (address, process):
            for seed in (1, 2, 1, 3, 2, 1)[:JOBS]:
                request = {"prompt": "a rabbit", "seed": seed, "steps": 40}
                asked[call(address, "/jobs", {"request": request})["id"]] = seed
            events = urlopen(f"{address}api/events")
            for _line in range(chance.randrange(5, 400)):
                events.readline()
            process.send_signal(signal.SIGKILL)
            process.wait()
            events.close()
    with served(data, models) as (address, _):
        for id in asked:
            with urlopen(f"{address}api/jobs/{id}/events") as events:
                assert b'"state": "done"' in events.read().split(b"event: job")[-1]
        jobs = {id: call(address, f"/jobs/{id}") for id in asked}
        assert call(address, "/jobs")["total"] == len(asked)
    pictures: dict[int, set[str]] = {}
    for id, seed in asked.items():
        assert [picture["seed"] for picture in jobs[id]["pictures"]] == [seed]
        pictures.setdefault(seed, set()).add(jobs[id]["pictures"][0]["id"])
    assert all(len(same) == 1 for same in pictures.values())
    for path in (data / "pictures").rglob("*"):
        if path.is_file():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    with sqlite3.connect(data / "queue.sqlite") as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    database.close()


@pytest.mark.parametrize(
    ("stop_seconds", "states"), [("0", ["queued", "queued"]), ("100", ["done", "queued"])]
)
def test_a_stopped_server_finishes_what_runs_or_keeps_it(
    stop_seconds: str, states: list[str], models: Path, tmp_path: Path
) -> None:
    with served(tmp_path, models, stop_seconds=stop_seconds) as (address, process):
        requests = [{"prompt": "a rabbit", "seed": 1, "steps": steps} for steps in (200, 3)]
        ids = [call(address, "/jobs", {"request": each})["id"] for each in requests]
        with urlopen(f"{address}api/events") as events:
            for line in events:  # ends when the server stops
                if line.startswith(b"event: step"):
                    process.terminate()
        assert process.wait(LONG) in (0, 143, -signal.SIGTERM)
    with closing(sqlite3.connect(tmp_path / "queue.sqlite")) as database:
        found = dict(database.execute("select id, state from jobs").fetchall())
    assert [found[id] for id in ids] == states
