"""Where memory is short, the parts of a model are read in their turn, and the picture is the same."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pellucid import checkpoints
from pellucid.adapters import adapt
from pellucid.checkpoints import contents
from pellucid.model import Model
from pellucid.pipeline import Progress, generate
from pellucid.preview import preview
from pellucid.request import Request
from pellucid.runtime import backends, devices, memory
from pellucid.runtime.backends import OnBackend, int8
from pellucid.runtime.devices import weight_bytes
from pellucid.runtime.precision import finite
from references import make_lora, model_of, parts_of

CPU = torch.device("cpu")
REQUEST = Request(prompt="a red apple", seed=1, steps=2, width=64, height=64)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thin model in a single file, in half precision."""
    path = tmp_path_factory.mktemp("turns") / "sd1.safetensors"
    checkpoints.save(
        model_of("sd1", vocabulary=49408, layers_per_block=1), path, torch.float16, to="ldm"
    )
    return path


@pytest.fixture
def short(file: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The same, with memory for one part alone."""
    largest = max(weight_bytes(part) for part in parts_of(checkpoints.load(file)).values())
    monkeypatch.setattr(memory, "free_memory", lambda *_, **__: largest + 2**25)
    return checkpoints.load(file, in_turns=True)


def here(model: Model) -> list[str]:
    """The parts that are in memory."""
    return [name for name, part in parts_of(model).items() if devices.is_read(part)]


def drawn(model: Model, request: Request = REQUEST, adapt: Any = None) -> Progress:
    *_, last = generate(model, request, adapt)
    return last


def same(one: Progress, other: Progress) -> bool:
    assert one.images is not None and other.images is not None
    return one.images[0].tobytes() == other.images[0].tobytes()


def test_each_part_is_there_in_its_turn(file: Path, short: Model) -> None:
    assert here(short) == []
    for progress in generate(short, REQUEST):
        assert here(short) == (["vae"] if progress.images else ["backbone"])
    assert same(progress, drawn(checkpoints.load(file)))
    assert same(progress, drawn(short))  # once more


def test_parts_go_after_a_failure_too(short: Model) -> None:
    with pytest.raises(ZeroDivisionError), devices.reading(short.backbone):
        assert devices.is_read(short.backbone)
        raise ZeroDivisionError
    assert not devices.is_read(short.backbone)


def test_where_there_is_room_all_are_there(file: Path) -> None:
    assert here(checkpoints.load(file, in_turns=True)) == ["backbone", "vae", "text"]


def test_text_towers_go_before_a_single_picture_is_drawn(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert here(checkpoints.load(file, in_turns="text")) == ["backbone", "vae", "text"]  # small
    monkeypatch.setattr(contents, "LARGE", 1)
    model = checkpoints.load(file, in_turns="text")
    assert here(model) == ["backbone", "vae"]
    assert here(checkpoints.load(file, in_turns=True)) == ["backbone", "vae", "text"]
    for _ in generate(model, REQUEST):
        assert here(model) == ["backbone", "vae"]
    assert same(drawn(model), drawn(checkpoints.load(file)))


def test_what_does_not_fit_in_turns_is_said(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda *_, **__: 2**20)
    with pytest.raises(memory.DoesNotFit, match="GB are free"):
        checkpoints.load(file, in_turns=True)


def test_a_preview_between_two_steps(file: Path, short: Model) -> None:
    for progress in generate(short, REQUEST):
        preview(short, progress.x0, "vae")
    assert same(progress, drawn(checkpoints.load(file)))


@pytest.mark.parametrize("live", [False, True])
def test_a_lora(file: Path, short: Model, live: bool, tmp_path: Path) -> None:
    lora = make_lora(model_of("sd1", layers_per_block=1), tmp_path / "lora.safetensors")
    request = REQUEST.model_copy(update={"loras": ((str(lora), 0.05, 0.05),)})

    def with_lora(model: Model, request: Request) -> Any:
        return adapt(model, request, live=live)

    found = drawn(short, request, with_lora)
    assert same(found, drawn(checkpoints.load(file), request, with_lora))
    assert not same(found, drawn(short))
    assert here(short) == ["vae"]  # and not what the LoRA was added to


@pytest.mark.skipif(int8.unsuitable(CPU) is not None, reason="needs VNNI")
def test_8_bits(file: Path, short: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "SMALL", 0)
    monkeypatch.setattr(int8, "LEAST", 2**10)
    small = OnBackend(lambda model, _: (model, ()), backends.BackendChoice("int8"), lambda _: None)
    found = drawn(short, REQUEST, small)
    assert same(found, drawn(checkpoints.load(file), REQUEST, small))
    assert not same(found, drawn(short))


def test_openvino_is_not_used_where_memory_is_short(short: Model) -> None:
    pytest.importorskip("openvino")
    graphs = OnBackend(
        lambda model, _: (model, ()), backends.BackendChoice("openvino"), lambda _: None
    )
    (warning,) = drawn(short, REQUEST, graphs).warnings
    assert warning.startswith("openvino needs the network in memory twice")
    assert warning.endswith("; the backend is eager")


def test_a_part_that_changed_to_float32_stays_so() -> None:
    part, calls = nn.Linear(2, 2).half(), []

    def read(part: nn.Module) -> None:
        calls.append(next(part.parameters()).dtype)
        part.to_empty(device="cpu")
        nn.init.ones_(part.weight)  # type: ignore[arg-type]
        nn.init.zeros_(part.bias)  # type: ignore[arg-type]

    devices.take_turns(part, read)
    devices.begin_turn(part)
    wide = torch.full((1, 2), 6e4)
    _, warning = finite("it", part, lambda: part(wide.to(next(part.parameters()).dtype)))
    assert warning is not None
    devices.let_go(part)
    devices.begin_turn(part)
    assert calls == [torch.float16, torch.float32]


def test_a_model_that_is_not_used_any_more_goes(file: Path, short: Model) -> None:
    before = len(devices._reads)
    another = checkpoints.load(file, in_turns=True)
    assert len(devices._reads) == before + 3
    del another
    gc.collect()
    assert len(devices._reads) == before


HEAVY = """
import resource, sys
from pathlib import Path
import torch
from pellucid import checkpoints
from pellucid.pipeline import generate
from pellucid.request import Request
from pellucid.runtime.devices import THREADS
torch.set_num_threads(1)
request = Request.model_validate_json(sys.argv[5])
path, in_turns, room = Path(sys.argv[1]), sys.argv[2] == "turns", int(sys.argv[3])
list(generate(checkpoints.load(Path(sys.argv[4])), request))  # what is imported late
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + room + THREADS, resource.RLIM_INFINITY))
model = checkpoints.load(path, in_turns=in_turns)
*_, last = generate(model, request)
print(last.images[0].tobytes().hex())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_limit_that_is_too_small_for_all_parts(file: Path, tmp_path: Path) -> None:
    """The weights fill the memory: about 100 MB each, as `ulimit -v` limits it."""
    torch.manual_seed(0)
    wide = replace(model_of("sd1").text.config, vocab_size=49408, width=512, heads=8)
    model = model_of(
        "sd1", layers_per_block=1, block_out_channels=(32, 64, 96, 384), cross_attention_dim=512
    )
    path = tmp_path / "heavy.safetensors"
    model = replace(model, text=type(model.text)(wide).eval())
    checkpoints.save(model, path, torch.float16, to="ldm")
    sizes = [weight_bytes(part) for part in parts_of(model).values()]
    room = (sum(sizes) + max(sizes)) // 2
    request = REQUEST.model_copy(update={"steps": 1, "width": 32, "height": 32})

    def run(how: str, room: int) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", HEAVY, str(path), how, str(room), str(file)]
        words.append(request.model_dump_json())
        return subprocess.run(words, capture_output=True, text=True, check=False)

    assert run("at once", room).returncode != 0
    limited = run("turns", room)
    assert limited.returncode == 0, limited.stderr
    (picture,) = drawn(checkpoints.load(path), request).images or ()
    assert limited.stdout.strip() == picture.tobytes().hex() != ""


Call = Callable[..., tuple[int, str, str]]


@pytest.mark.usefixtures("read_anew")
def test_the_command_takes_turns(
    file: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = max(weight_bytes(part) for part in parts_of(checkpoints.load(file)).values())
    words = ("generate", "a red apple", "--model", file, "--size", "64", "--steps", "1")
    words = (*words, "--seed", "1", "--exact", "--json", "--out")
    assert call(*words, tmp_path / "all.png")[0] == 0
    monkeypatch.setattr(memory, "free_memory", lambda *_, **__: largest + 2**25)
    begun: list[nn.Module] = []
    begin = devices.begin_turn
    monkeypatch.setattr(devices, "begin_turn", lambda part: (begun.append(part), begin(part)))
    assert call(*words, tmp_path / "turns.png")[0] == 0
    assert (tmp_path / "all.png").read_bytes() == (tmp_path / "turns.png").read_bytes()
    assert len([part for part in begun if devices.takes_turns(part)]) >= 3
