"""Pictures of people who mean harm: other formats, deep and long texts, fields of wrong types."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inputs import EPS, a1111_picture, captions, exif, noisy, png_text
from PIL import EpsImagePlugin, Image

# ---------------------------------------------------------------- 1: formats that are opened


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A Ghostscript that leaves a mark, and a test that fails if it did."""
    folder, mark = tmp_path / "bin", tmp_path / "started"
    folder.mkdir()
    program = folder / "gs"
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    yield
    assert not mark.exists(), "a picture started another program"


READERS: dict[str, tuple[str, ...]] = {
    "image": ("generate", "a", "--image", "{}"),
    "mask": ("generate", "a", "--image", "good.png", "--mask", "{}"),
    "like": ("generate", "a", "--like", "{}"),
    "info": ("info", "{}"),
    "noise": ("noise", "{}"),
    "autoencoder": ("autoencoder", "{}"),
    "clip": ("clip", "{}", "--text", "a cat"),
}


CASES = [("picture.png", reader) for reader in READERS]
CASES += [("picture.jpg", "image"), ("picture.eps", "image"), ("picture.jpg", "info")]


@pytest.mark.parametrize(("name", "reader"), CASES)
def test_a_picture_starts_no_other_program(
    name: str,
    reader: str,
    refused: Any,
    tmp_path: Path,
    no_programs: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Harm 1: an EPS that is named as a PNG; Pillow would run Ghostscript on it."""
    monkeypatch.chdir(tmp_path)
    noisy().save("good.png")
    Path(name).write_bytes(EPS)
    assert name in refused(*(word.format(name) for word in READERS[reader]))


def test_training_pictures_start_no_other_program(
    refused: Any, tmp_path: Path, no_programs: None, sd1_file: Path
) -> None:
    """Harm 1: the pictures that somebody's data set has."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.png").write_bytes(EPS)
    (folder / "a.txt").write_text("a cat")
    assert captions(folder) == {"a.png": "a cat"}
    words = (f"data={folder}", f"model={sd1_file}", f"out={tmp_path / 'x.safetensors'}")
    assert "a.png" in refused("train", "lora", *words, "steps=1", "size=64")


OTHERS = ("PPM", "ICO", "TGA", "PCX", "JPEG2000", "SGI", "DDS", "XBM", "PDF", "EPS", "ICNS")


@pytest.mark.parametrize("kind", OTHERS)
def test_formats_that_are_not_meant(
    kind: str, refused: Any, tmp_path: Path, no_programs: None, model_file: Path
) -> None:
    """Harm 1: every further decoder is one more way in."""
    path = tmp_path / "picture.png"
    mode = "1" if kind == "XBM" else "RGB"
    Image.new(mode, (16, 16)).save(path, kind)
    said = refused("generate", "a", "--image", path, "--model", model_file, "--out", tmp_path)
    assert "picture.png" in said and "PNG" in said


MEANT = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "MPO")


@pytest.mark.parametrize("kind", MEANT)
def test_formats_that_are_meant(kind: str, call: Any, tmp_path: Path, model_file: Path) -> None:
    """Harm 1: these are opened, whatever the name says; MPO is the JPEG of many cameras."""
    path = tmp_path / "picture.dat"
    options: dict[str, Any] = {"save_all": True, "append_images": [noisy(seed=1)]}
    noisy().save(path, kind, **(options if kind == "MPO" else {}))
    words = ("generate", "a", "--image", path, "--model", model_file, "--out", tmp_path / "a.png")
    status, _, err = call(*words)
    assert status == 0, err


# ---------------------------------------------------------------- 3: bounds of time and memory


@pytest.mark.parametrize(
    "text", ["Steps: 1, " * 30_000, 'a: "' * 50_000, "a" * 200_000, "Steps:" * 50_000]
)
def test_the_text_of_a_picture_is_read_in_time(
    text: str, call: Any, tmp_path: Path, within: Any
) -> None:
    """Harm 3: the settings of A1111 are taken apart without going over them again and again."""
    path = a1111_picture(tmp_path / "a.png", f"a cat\n{text}")
    with within(3):
        assert call("info", path)[0] == 0
        assert call("generate", "--like", path, "--steps", 0)[0] == 2


# ---------------------------------------------------------------- 4: tracebacks

DEEP = "[" * 200_000
NESTED = {
    "own": {"pellucid": DEEP},
    "objects": {"pellucid": '{"a":' * 100_000},
    "whole": {"pellucid": "[" * 100_000 + "]" * 100_000},
    "A1111": {"parameters": f"a cat\nSteps: 2, Seed: 1, Size: 16x16, Model: {DEEP}"},
    "Fooocus": {"parameters": '{"prompt": ' + DEEP, "fooocus_scheme": "fooocus"},
    "ComfyUI": {"prompt": DEEP, "workflow": DEEP},
    "InvokeAI": {"invokeai_metadata": DEEP},
    "number": {"pellucid": '{"seed": ' + "1" * 100_000 + "}"},
    "NovelAI": {"Software": "NovelAI", "Comment": DEEP},
}


@pytest.mark.parametrize("kind", NESTED)
def test_deeply_nested_json_in_a_picture(
    kind: str, call: Any, tmp_path: Path, within: Any, model_file: Path
) -> None:
    """Harm 4: `info` and `--like` say something, or nothing, and never a traceback."""
    path = png_text(tmp_path / "a.png", **NESTED[kind])
    with within(5):
        for words in (
            ("info", path),
            ("info", path, "--json"),
            ("generate", "--like", path, "--model", model_file, "--out", tmp_path / "out"),
        ):
            status, _, err = call(*words)
            assert status in (0, 2) and err.count("\n") <= 4, err


def test_deeply_nested_json_in_a_jpeg(call: Any, tmp_path: Path) -> None:
    """Harm 4: the same in the description of a JPEG."""
    noisy().save(tmp_path / "a.jpg", exif=exif(bytes(8), x010E="[" * 30_000))
    assert call("info", tmp_path / "a.jpg")[0] == 0
    assert call("generate", "--like", tmp_path / "a.jpg")[0] == 2


# ---------------------------------------------------------------- 5: wrong input in silence


def test_lone_surrogates_in_a_picture(call: Any, model_file: Path, tmp_path: Path) -> None:
    """Harm 5: JSON can hold them too."""
    path = png_text(tmp_path / "a.png", pellucid='{"prompt": "a \\ud83d cat", "seed": 1}')
    common = ("--model", model_file, "--json", "--out", tmp_path / "out")
    status, out, _ = call("generate", "--like", path, *common)
    assert status == 2 or "\ud83d" not in json.loads(out)["images"][0]["request"]["prompt"]


WRONG: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": 5},
    "negative_prompt": {"negative_prompt": ["red"]},
    "steps": {"steps": "many"},
    "seed": {"seed": 1.5},
    "guidance": {"guidance": {"a": 1}},
    "model_file": {"model_file": 7},
    "lora_folder": {"lora_folder": ["loras"]},
    "loras": {"loras": "a.safetensors"},
    "warp": {"warp": 9},
    "Prompt": {"Prompt": "a dog"},
    "prompt_strength": {"prompt_strength": 0.5},
}


@pytest.mark.parametrize("field", WRONG)
def test_like_takes_no_wrong_field_in_silence(
    field: str, call: Any, model_file: Path, tmp_path: Path
) -> None:
    """Harm 5: a field of the wrong type is refused or named, and an unknown one is named."""
    fields = {"prompt": "a cat", "seed": 1} | WRONG[field]
    path = png_text(tmp_path / "a.png", pellucid=json.dumps(fields))
    common = ("--model", model_file, "--out", tmp_path / "out")
    status, _, err = call("generate", "--like", path, *common)
    name = {"negative_prompt": "negative", "loras": "lora"}.get(field, field)  # its option
    assert status in (0, 2) and name in err.replace("-", "_")


def test_a_request_that_is_no_object(call: Any, model_file: Path, tmp_path: Path) -> None:
    """Harm 5: a list, a number, a text in place of the request."""
    for text in ("[1, 2]", "3", '"a cat"', "null"):
        path = png_text(tmp_path / "a.png", pellucid=text)
        words = ("generate", "--like", path, "--model", model_file, "--out", tmp_path / "out")
        assert call(*words)[0] == 2
