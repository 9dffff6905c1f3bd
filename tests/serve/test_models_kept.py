"""A worker that goes from model to model gives the memory back.

SERVE_TEST_SWITCHES=200 python -m pytest --log-cli-level=INFO tests/serve/test_models_kept.py
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
from sending import LONG

from pellucid import checkpoints
from pellucid.request import Request
from pellucid.serve import worker
from pellucid.serve.worker import Draw, Ended, ModelSpec, WorkerJob, WorkerOptions
from references import model_of

log = logging.getLogger(__name__)

FAMILIES = ("sd1", "sd2", "sdxl")
SWITCHES = int(os.environ.get("SERVE_TEST_SWITCHES", "12"))


def resident(pid: int) -> int:
    """Bytes of a process that are in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_memory_goes_back_to_its_level(tmp_path: Path) -> None:
    specs = []
    for name in FAMILIES:
        path = tmp_path / f"{name}.safetensors"
        checkpoints.save(model_of(name, vocabulary=49408, layers_per_block=1), path, to="ldm")
        specs.append(ModelSpec(name, path, (0, 0)))
    smallest = min(spec.path.stat().st_size for spec in specs)
    (tmp_path / "pictures").mkdir()
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    settings = WorkerOptions("cpu", "float32", 1, tmp_path, None)  # one model at a time
    process = spawn.Process(target=worker.main, args=(theirs, settings), daemon=True)
    process.start()
    theirs.close()
    sizes = []
    request = Request(prompt="a rabbit", seed=1, steps=1, width=64, height=64)
    for number in range(len(FAMILIES) + SWITCHES):
        ours.send(
            Draw([WorkerJob(str(number), "generate", request, {}, specs[number % len(specs)])])
        )
        message = None
        while not isinstance(message, Ended):
            assert ours.poll(LONG)
            message = ours.recv()
        assert message.state == "done", message.error
        if number >= len(FAMILIES) - 1:  # each was there once
            sizes.append(resident(process.pid or 0))
    ours.close()
    process.join(LONG)
    first, last = (sizes[n] / 2**20 for n in (0, -1))
    log.info("%d switches: %.0f MiB at first, %.0f at the end", SWITCHES, first, last)
    assert sizes[-1] - sizes[0] < SWITCHES / 4 * smallest
