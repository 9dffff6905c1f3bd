"""What fits in memory is known before a model is loaded."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pellucid.runtime import devices, memory
from pellucid.runtime.devices import free_memory

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
PARTS = {"backbone": 860_000_000, "text": 123_000_000, "vae": 84_000_000}


def test_a_model_that_fits_is_not_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 5 * 10**9)
    assert memory.shortage(PARTS, torch.float32, CPU) is None
    monkeypatch.setattr(memory, "free_memory", lambda device: None)  # not known
    assert memory.shortage(PARTS, torch.float32, CPU) is None


def test_what_does_not_fit_is_said_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 3 * 10**9)
    said = memory.shortage(PARTS, torch.float32, CPU)
    assert said is not None
    assert str(said) == (
        "the model needs 4.3 GB of memory in float32, and 3.0 GB are free; dtype bfloat16 would fit"
    )
    assert "--dtype bfloat16 would fit" in said.written(lambda field: f"--{field}")
    assert "would fit" not in str(memory.shortage(PARTS, torch.float32, CPU, work=2 * 10**9))
    assert "would fit" not in str(memory.shortage({"b": 10**10}, torch.bfloat16, CPU))


def test_parts_take_turns_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 35 * 10**8)
    assert memory.shortage(PARTS, torch.float32, CUDA) is None
    assert memory.shortage(PARTS, torch.float32, CPU) is not None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_limit_of_the_address_space_counts() -> None:
    """As with `ulimit -v`; in a process of its own, which the limit is for."""
    code = (
        "import resource, torch; from pellucid.runtime.devices import free_memory\n"
        f"resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, {resource.RLIM_INFINITY}))\n"
        "free = free_memory(torch.device('cpu'))\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "print(free <= 8 * 2**30 - used + 2**28)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def group(place: Path, limit: str, used: int) -> None:
        place.mkdir(exist_ok=True)
        (place / "memory.max").write_text(limit)
        (place / "memory.current").write_text(str(used))
        (place / "memory.stat").write_text("anon 5\ninactive_file 100\n")

    read = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda path, *words: (
            "0::/a/b\n" if str(path) == "/proc/self/cgroup" else read(path, *words)
        ),
    )
    group(tmp_path / "a", "1000", 400)
    group(tmp_path / "a" / "b", "max", 0)
    assert devices._control_group(tmp_path) == 700  # of the group above
    group(tmp_path / "a" / "b", "500", 300)
    assert devices._control_group(tmp_path) == 300
    assert devices._control_group(tmp_path / "none") is None


def test_free_memory_is_at_most_what_the_machine_has() -> None:
    free, machine = free_memory(CPU), devices._machine()
    assert free is not None and machine is not None and free <= machine * 1.5
