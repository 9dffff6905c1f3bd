"""Prompts and servers on a Ray cluster of two workers, which the tests start."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sending import LONG

from pellucid import checkpoints
from pellucid.pipeline import generate
from pellucid.request import Request
from pellucid.serve import replicas
from pellucid.serve.acceptance import Asked
from pellucid.serve.configuration import Configuration
from pellucid.serve.engine import Engine

pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray with two CPUs."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def fail(**settings: Any) -> None:
        raise Exception("The current node timed out during startup.\nMore lines.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match=r"cannot be started here: The .* startup\.$"):
        replicas.connected()
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ValueError, match="does not answer: The current node"):
        replicas.connected()


def test_prompts_are_drawn_as_on_one_machine_and_resumed(
    cluster: Any, model_file: Path, tmp_path: Path, call: Any
) -> None:
    lines = [{"prompt": f"a rabbit {n}", "seed": n, "count": 1 + n % 2} for n in range(4)]
    lines.insert(2, {"prompt": "a frog", "width": 17})
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["generate", "--prompts", file, "--model", model_file, "--device", "cpu"]
    here, there = tmp_path / "here", tmp_path / "there"
    status, _, said = call(*words, "--out", here)
    assert status == 2 and "line 3: width must be a multiple of 2" in said
    assert len(pictures(here)) == 6
    status, _, said = call(*words, "--out", there, "--ray")
    assert status == 2 and "line 3: width must be a multiple of 2" in said
    assert pictures(there) == pictures(here)
    gone = sorted(there.glob("*.png"))[1]
    gone.unlink()
    status, out, said = call(*words, "--out", there, "--ray", "--resume")
    assert status == 2 and out.split() == [str(gone)] and said.count("is there already") == 5
    assert pictures(there) == pictures(here)


def test_what_ray_cannot_do_is_refused(refused: Any) -> None:
    assert "--ray needs --prompts" in refused("generate", "a rabbit", "--ray")


def test_a_server_draws_on_two_replicas(
    cluster: Any, models: Path, model_file: Path, tmp_path: Path
) -> None:
    configuration = Configuration(
        data=tmp_path,
        models=(models,),
        model="tiny",
        devices=("cpu",),
        dtype="float32",
        ray=True,
        replicas=2,
    )
    engine = Engine(configuration)
    engine.start()
    try:
        long, short = (Request(prompt="a rabbit", seed=1, steps=steps) for steps in (200, 3))
        slow, quick = engine.submit(Asked(long), Asked(short))
        ended = engine.wait(quick.id, LONG)
        assert ended is not None and (ended.state, ended.error) == ("done", None)
        drawing = next(each for each in engine.workers if slow.id in each.open)
        assert isinstance(drawing._process, replicas.RemoteProcess)
        drawing.kill()  # the job is drawn again by another actor
        ended = engine.wait(slow.id, LONG)
        assert ended is not None and (ended.state, ended.error) == ("done", None)
        *_, last = generate(checkpoints.load(model_file), long)
        assert last.images is not None
        path = engine.pictures.path(ended.pictures[0].picture)
        assert path is not None
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(last.images[0]))
    finally:
        engine.stop()
