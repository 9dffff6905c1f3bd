"""What fits in memory is known before a model is loaded."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pellucid import checkpoints
from pellucid.checkpoints import contents
from pellucid.messages import FieldMessage
from pellucid.model import Model
from pellucid.runtime import Runtime, devices, memory
from pellucid.runtime.devices import free_memory
from pellucid.serve.models_kept import Kept

CPU, CUDA, META = torch.device("cpu"), torch.device("cuda:0"), torch.device("meta")
PARTS = {"backbone": 3_440_000_000, "text": 492_000_000, "vae": 336_000_000}
Free = Callable[[int | None], None]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Free:
    """Pretend that so many bytes are free; None: that it is not known."""
    return lambda count: monkeypatch.setattr(memory, "free_memory", lambda *_, **__: count)


@pytest.mark.parametrize("count", [5 * 10**9, None])
def test_a_model_that_fits_is_not_mentioned(count: int | None, free: Free) -> None:
    free(count)
    assert memory.fits_at_once("sd15", PARTS, torch.float32, CPU)


def test_what_does_not_fit_is_said_with_what_would(free: Free) -> None:
    def said(dtype: torch.dtype = torch.float32) -> FieldMessage:
        halves = {name: size // 2 for name, size in PARTS.items()}
        kinds = (memory.Alternative("{dtype} bfloat16", CPU, halves),)
        others = kinds if dtype == torch.float32 else ()
        with pytest.raises(memory.DoesNotFit) as error:
            memory.fits_at_once("sd15", PARTS, dtype, CPU, alternatives=others)
        message = error.value.args[0]
        assert isinstance(message, FieldMessage)
        return message

    free(3 * 10**9)
    needed = "sd15 needs 4.3 GB of memory in float32, and 3.0 GB are free"
    assert said() == f"{needed}; dtype bfloat16 would fit, with 2.1 GB"
    assert "--dtype bfloat16 would fit" in said().written(lambda field: f"--{field}")
    free(2 * 10**9)
    assert said().endswith("; dtype bfloat16 needs 2.1 GB, which does not fit either")
    assert said(torch.bfloat16).endswith("2.0 GB are free; no other number type needs less")


def test_parts_take_turns_on_a_gpu(free: Free) -> None:
    free(35 * 10**8)
    assert not memory.fits_at_once("sd15", PARTS, torch.float32, CUDA)
    free(33 * 10**8)
    with pytest.raises(memory.DoesNotFit, match=r"needs 3\.4 GB"):
        memory.fits_at_once("sd15", PARTS, torch.float32, CUDA)


@pytest.mark.usefixtures("read_anew")
def test_it_is_said_before_weights_are_read(
    free: Free, refused: Any, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that keep their type stay in the file, and need no memory on a CPU."""
    free(1000)
    loaded = checkpoints.load(model_file)
    monkeypatch.setattr(contents, "fill", None)  # it is not called
    words = ("generate", "a cat", "--model", model_file, "--dtype", "bfloat16")
    assert "tiny.safetensors needs 0.00 GB of memory in bfloat16" in refused(*words)
    halves = model_file.with_name("half.safetensors")
    checkpoints.save(loaded, halves, torch.float16)
    said = refused(*words[:3], halves, "--dtype", "float32")
    # A CPU computes with the file's own numbers, where they are.
    assert "in float32, and 0.00 GB are free; --dtype float16 would fit, with 0.0 GB" in said


def test_a_gpu_that_is_too_small_for_all_gets_the_network_first(
    free: Free, model_file: Path
) -> None:
    """The meta device stands for a GPU here; the other parts go there when it is their turn."""
    size = sum(p.numel() for p in checkpoints.load(model_file).backbone.parameters())
    free(4 * size)
    model = checkpoints.load(model_file, META)
    assert devices.device_of(model.backbone) == Runtime(model).device == META
    assert devices.device_of(model.vae) == devices.device_of(model.text) == CPU


def test_models_that_are_kept_make_room(model: Model) -> None:
    """A server drops what it keeps for later before it says that a model does not fit."""
    kept = Kept(10**12)
    kept.get("first", lambda: model)

    def load() -> Model:
        if len(kept):
            raise memory.DoesNotFit("it does not fit")
        return model

    assert kept.get("second", load) is model and len(kept) == 1

    def never() -> Model:
        raise memory.DoesNotFit("it does not fit")

    with pytest.raises(memory.DoesNotFit):
        kept.get("third", never)


@pytest.mark.usefixtures("read_anew")
def test_memory_that_ends_while_a_file_is_read_is_no_fault_of_the_file(
    refused: Any, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = model_file.with_name("halves.safetensors")
    checkpoints.save(checkpoints.load(model_file), halves, torch.float16)

    def short(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")

    monkeypatch.setattr(torch, "frombuffer", short)  # which comes behind the cast tensor
    said = refused("generate", "a cat", "--model", halves, "--dtype", "float32")
    assert "halves.safetensors needs more memory than is free: memory ended while 0.0 GB" in said


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


def test_memory_that_ends_at_work_is_said_with_figures() -> None:
    on_cpu = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 17179869184 bytes."
    on_gpu = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of ..."
    assert memory.wanted(RuntimeError(on_cpu)) == ", 17.2 GB are needed at once"
    assert memory.wanted(RuntimeError(on_gpu)) == ", 2.7 GB are needed at once"
    assert memory.wanted(MemoryError()) == ""


def test_a_thread_that_cannot_be_started_is_too_little_memory() -> None:
    assert memory.ran_out(RuntimeError("can't start new thread"))
    assert not memory.ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
