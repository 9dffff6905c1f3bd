"""What is shown of work that takes long."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from pellucid import checkpoints, cli
from pellucid.checkpoints.writing import EMPTY, Pending, write
from pellucid.cli import _bar
from pellucid.cli._bar import Log, described, in_words, with_bar
from pellucid.evaluate.compare import work
from pellucid.evaluate.compare.benchmark import CompareOptions, ComparePart
from pellucid.explain.noise.estimate import estimate_from_each
from pellucid.model import Model
from pellucid.pipeline import Request, generate
from pellucid.progress import Stage, each, followed, share, stage
from pellucid.runtime import Runtime
from pellucid.train.lora import LoraOptions, load_pictures, make_pool


@pytest.fixture(autouse=True)
def _usual_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bar, "LINES", (2.0, 10.0, 30.0))


def test_stages_are_those_that_the_work_is_in() -> None:
    with followed() as stages:
        seen = []
        for item in each("outer", ["a", "b"]):
            with stage("inner") as inner:
                inner.total, inner.done = 4, 1
                seen.append((item, [(s.what, s.done, s.total) for s in stages], share(stages)))
        assert seen == [
            ("a", [("outer", 0, 2), ("inner", 1, 4)], 0.125),
            ("b", [("outer", 1, 2), ("inner", 1, 4)], 0.625),
        ]
        assert not stages
        with pytest.raises(KeyError), stage("fails"):
            raise KeyError
        stopped = each("stopped", range(3))
        next(stopped)
        assert [s.what for s in stages] == ["stopped"]
        stopped.close()
        assert not stages


def test_without_a_listener_nothing_is_kept() -> None:
    with stage("outer", 3) as now:
        now.done = 1
        assert list(each("inner", range(2))) == [0, 1]
    with followed() as stages:
        assert not stages


def test_another_thread_has_its_own_stages() -> None:
    """The server works in threads, and none of them shows what another does."""
    with followed() as stages:
        thread = threading.Thread(target=lambda: list(each("other", range(2))))
        with stage("mine"):
            thread.start()
            thread.join()
            assert [s.what for s in stages] == ["mine"]


@pytest.mark.parametrize(
    ("done", "inner", "expected"),
    [
        (0.0, None, 0.0),
        (2.0, (1.0, 2), 0.625),  # half of the third of four steps
        (2.75, (1.0, 2), 0.6875),  # what the step itself says counts if it is more
        (4.0, None, 1.0),
        (4.0, (1.0, 2), 1.0),
    ],
)
def test_share(done: float, inner: tuple[float, int] | None, expected: float) -> None:
    stages = [Stage("outer", 4, done)]
    if inner is not None:
        stages.append(Stage("inner", inner[1], inner[0]))
    assert share(stages) == expected


def test_share_of_a_stage_whose_steps_are_not_known() -> None:
    assert share([]) is None and share([Stage("x")]) is None
    assert share([Stage("x"), Stage("y", 4, 1)]) == 0.25


def lines(until: float, tick: float = 0.5, lasts: float = 1e9) -> list[tuple[float, str]]:
    """The lines of a log of work whose stages last so many seconds each."""
    log, found = Log(), []
    now, current = 0.0, Stage("working", 10, 0, began=0.0)
    while now <= until:
        if now - current.began >= lasts:
            current = Stage("working", 10, 0, began=now)
        if (line := log.line([current], now)) is not None:
            found.append((now, line))
        now += tick
    return found


def test_a_log_gets_lines_after_2_10_30_seconds_and_then_every_minute() -> None:
    assert [now for now, _ in lines(200.0)] == [2, 10, 30, 90, 150]
    assert lines(2.0)[0][1] == "working: 1 of 10, 2 s so far"
    assert lines(1.9) == []


def test_each_long_stage_is_named_once_in_a_log_and_short_ones_are_not() -> None:
    assert [now for now, _ in lines(20.0, lasts=4.5)] == [2, 6.5, 10, 15.5, 20]
    assert [now for now, _ in lines(100.0, lasts=1.5)] == [2, 10, 30, 90]


def test_a_log_gets_no_two_lines_at_once() -> None:
    log = Log()
    assert log.line([Stage("first", began=0.0)], 2.0)
    second = Stage("second", began=7.0)
    assert log.line([second], 9.0) and log.line([second], 10.5) is None
    assert log.line([second], 30.0)


def test_stages_in_words() -> None:
    outer, inner = Stage("estimates", 4, 1.0, began=0.0), Stage("tile", 8, 4.0, began=9.0)
    assert described([outer], 10.0) == "estimates: 2 of 4, 30 s left"
    assert described([outer, inner], 15.0) == "estimates: 2 of 4, tile 5 of 8, 25 s left"
    assert (
        described([outer, Stage("decoding")], 600.0) == "estimates: 2 of 4, decoding, 30 min left"
    )
    assert described([Stage("loading x", 200_000, 50_000, began=0.0)], 3.0) == (
        "loading x: 25%, 9 s left"
    )
    drawing = [Stage('drawing "a"', 1, 0.0, began=0.0), Stage("step", 1, began=0.0)]
    assert described(drawing, 3.0) == 'drawing "a", step 1 of 1, 3 s so far'
    assert described([Stage("decoding", began=0.0)], 12.0) == "decoding, 12 s so far"
    assert described([Stage("a\x1b[2J\nb", began=0.0)], 1.0) == "a\\x1b[2J b, 1 s so far"
    assert [in_words(s) for s in (0.4, 89, 91, 5399, 9000)] == [
        *("0 s", "89 s", "2 min", "1 h 30 min", "2 h 30 min")
    ]


def test_a_bar_is_as_long_as_the_share() -> None:
    for done in range(9):
        shown = with_bar([Stage("x", 8, done, began=0.0)], 1.0)
        assert (shown.count("━"), shown.count("─")) == (3 * done, 24 - 3 * done)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> str:
    """What is written of a stage that lasts until something is written of it."""
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(_bar, "REDRAW", 0.001)
    monkeypatch.setattr(_bar, "SHORT", 0.0)
    monkeypatch.setattr(_bar, "LINES", (0.0, 1e9))
    deadline = time.monotonic() + 60
    with _bar.shown_progress(), stage("working", 4) as now:
        now.done = 2
        while "working" not in stream.getvalue() and time.monotonic() < deadline:
            threading.Event().wait(0.001)
    return stream.getvalue()


def test_a_terminal_shows_a_bar_that_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    written = shown(monkeypatch, Terminal())
    assert "\r\x1b[K" + "━" * 12 + "─" * 12 + " working: 3 of 4, " in written
    assert written.endswith("\r\x1b[K") and "\n" not in written


def test_a_pipe_gets_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    written = shown(monkeypatch, io.StringIO())
    assert written.startswith("pellucid: working: 3 of 4, ") and written.endswith("left\n")
    assert written.count("\n") == 1 and "\x1b" not in written and "━" not in written


def watched(work: object, *arguments: object, **named: object) -> list[tuple[str, ...]]:
    """The stages that a piece of work goes through."""
    seen: dict[tuple[str, ...], None] = {}

    class Seen(list[Stage]):
        def append(self, stage: Stage) -> None:
            super().append(stage)
            seen[tuple(each.what for each in self)] = None

    from pellucid import progress

    before = progress._stages.set(Seen())
    try:
        assert callable(work)
        work(*arguments, **named)
    finally:
        progress._stages.reset(before)
    return list(seen)


def test_loading_and_writing_a_model(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    assert watched(checkpoints.save, model, path) == [("writing own.safetensors",)]
    assert watched(checkpoints.load, path) == [("loading own.safetensors",)]


def test_drawing(model: Model) -> None:
    request = Request(prompt="a rabbit", steps=2, seed=0)
    assert watched(lambda: list(generate(model, request))) == [
        ("step",),
        ("step", "encoding the text"),
        ("step", "decoding the picture"),
    ]


def test_a_large_picture_is_decoded_and_encoded_in_tiles_that_are_counted(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(model)
    monkeypatch.setattr(Runtime, "tile_size", lambda *_: 64)
    pixels = torch.zeros(1, 3, 32, 32)
    what = "encoding the picture"
    seen = watched(runtime.encode, pixels)
    assert set(seen) == {(what,), (what, "tile"), (what, "layer"), (what, "layer", "tile")}
    latents = runtime.encode(pixels)
    what = "decoding the picture"
    seen = watched(runtime.decode, model.vae, latents)
    assert seen == [(what,), (what, "layer"), (what, "layer", "tile")]


def test_estimates_of_noise(model: Model) -> None:
    picture = Image.new("RGB", (16, 16), "red")
    seen = watched(estimate_from_each, model, picture, (0, 500, 999), "", 1.0, 0)
    what = "estimating the picture from each time"
    assert (what,) in seen and (what, "decoding the picture") in seen


def test_pictures_for_a_lora(model: Model, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    (tmp_path / "red.txt").write_text("a red apple")
    folder = load_pictures(LoraOptions(data=str(tmp_path), size=16), model)
    seen = watched(make_pool, model, folder, True)
    assert seen == [("encoding the pictures",), ("encoding the text",)]


def test_a_tensor_that_is_not_as_it_was_announced_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match="a has 8 bytes, not 4"):
        write(path, {"a": Pending((1,), torch.float32, lambda: torch.zeros(2)), "e": EMPTY}, {})
    assert not list(tmp_path.iterdir())


def test_a_command_says_in_a_log_what_it_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first line comes at once here, and the work is slow enough for it."""
    monkeypatch.setattr(_bar, "REDRAW", 0.0005)
    monkeypatch.setattr(_bar, "LINES", (0.0, 1e9))
    monkeypatch.setattr(
        sys, "argv", ["pellucid", "generate", "a cat", "--steps", "1", "--out", f"{tmp_path}/"]
    )
    cli.main()
    said = capsys.readouterr().err.splitlines()
    assert any(line.startswith("pellucid: loading emoji.safetensors: ") for line in said)
    assert any(line.startswith('pellucid: drawing "a cat"') for line in said)


def test_the_time_left_of_a_comparison_is_that_of_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The real samples are a part too, which is done at once."""
    parts = [ComparePart("ring", method, 0) for method in ("real", "gan", "diffusion")]
    seen = []

    def run_all(*_: object) -> Iterator[tuple[ComparePart, float]]:
        for part, done in zip(parts, (1.0, 0.5, 0.1), strict=True):
            yield part, done
            seen.append(share(stages))

    monkeypatch.setattr(work, "run_all", run_all)
    with followed() as stages:
        cli.compare._work(CompareOptions(), parts, 1)
    assert seen == [0.0, 0.25, 0.3]
