"""The command line: what goes to stdout, what to stderr, and which exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pellucid import cli, images, pipeline


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit status of ``pellucid words``."""
    monkeypatch.setattr(sys, "argv", ["pellucid", *map(str, words)])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_paths_on_stdout(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_file: Path,
    tmp_path: Path,
) -> None:
    words = ("generate", "a rabbit", "--seed", 5, "--count", 2, "--model", model_file)
    assert call(monkeypatch, *words, "--out", tmp_path, "--show", "--film") == 0
    out, err = capsys.readouterr()
    names = [Path(line).name for line in out.splitlines()]
    assert names == [
        "a-rabbit-5.png",
        "a-rabbit-5-strip.png",
        "a-rabbit-5.webp",
        "a-rabbit-6.png",
        "a-rabbit-6-strip.png",
        "a-rabbit-6.webp",
    ]
    assert "▀" in err and sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_like_makes_the_same_picture_again(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_file: Path,
    tmp_path: Path,
) -> None:
    first, again, other = (tmp_path / f"{name}.png" for name in ("first", "again", "other"))
    common = ("--model", model_file, "--out")
    settings = ("--negative", "green", "--steps", 2, "--guidance", 3, "--size", "16x20")
    assert call(monkeypatch, "generate", "a rabbit", *settings, *common, first) == 0
    assert call(monkeypatch, "generate", "--like", first, *common, again) == 0
    assert call(monkeypatch, "generate", "--like", first, "--seed", 1, *common, other) == 0
    capsys.readouterr()
    pixels = [Image.open(path).tobytes() for path in (first, again, other)]
    assert pixels[0] == pixels[1] != pixels[2]
    request = images.read_metadata(again).request
    assert request is not None and request["negative_prompt"] == "green"
    # What is asked for beside --like counts more.
    changed = images.read_metadata(other).request
    assert changed is not None and changed | {"seed": request["seed"]} == request


def test_json_and_info(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_file: Path,
    tmp_path: Path,
) -> None:
    words = ("generate", "", "--mix", "a rabbit:0.5", "--model", model_file, "--json")
    assert call(monkeypatch, *words, "--out", tmp_path) == 0
    (made,) = json.loads(capsys.readouterr().out)["images"]
    assert made["request"]["mix"] == [["a rabbit", 0.5]]
    assert call(monkeypatch, "info", made["path"], "--json") == 0
    assert json.loads(capsys.readouterr().out)["request"] == made["request"]
    assert call(monkeypatch, "info", model_file) == 0
    assert "backbone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--sampler", "ueler"], "nearest first: euler"),
        (["--steps", "0"], "steps"),
        (["--steps", "1000000"], "steps"),
        (["--steps", "many"], "steps"),
        (["--guidance", "nan"], "guidance"),
        (["--seed", str(2**70)], "seed"),
        (["--size", "17x16"], "multiple of 2"),
        (["--size", "big"], "WIDTHxHEIGHT"),
        (["--size", "0"], "width"),
        (["--mix", "frog:much"], "TEXT:WEIGHT"),
        (["--image", "absent.png"], "absent.png"),
        (["--like", "absent.png"], "absent.png"),
        (["--model", "absent.safetensors"], "absent.safetensors"),
        (["--out", "picture.xyz"], "picture.xyz"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_bad_input_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_file: Path,
    tmp_path: Path,
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "generate", "a rabbit", "--model", model_file, *words) == 2
    out, err = capsys.readouterr()
    assert out == "" and sentence in err and "Traceback" not in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_is_none(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_file: Path,
    tmp_path: Path,
) -> None:
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    for option in ("--image", "--like"):
        words = ("generate", "a rabbit", "--model", model_file, option, text)
        assert call(monkeypatch, *words, "--out", tmp_path / "out") == 2
        assert "text.png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ctrl_c_is_130_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_file: Path,
    tmp_path: Path,
) -> None:
    def stopped(*_: object) -> list[Image.Image]:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "pictures", stopped)
    words = ("generate", "a rabbit", "--model", model_file, "--out", tmp_path / "out")
    assert call(monkeypatch, *words) == 130
    out, err = capsys.readouterr()
    assert out == "" and "stopped" in err and not (tmp_path / "out").exists()


def test_memory_that_does_not_suffice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model_file: Path
) -> None:
    def full(*_: object) -> list[Image.Image]:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")

    monkeypatch.setattr(pipeline, "pictures", full)
    assert call(monkeypatch, "generate", "a rabbit", "--model", model_file) == 2
    assert "memory" in capsys.readouterr().err


def test_help_is_quick_because_torch_is_not_imported() -> None:
    code = "import sys, pellucid.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
