"""Pictures of people who mean harm: formats that are not meant to be opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inputs import EPS, captions, noisy
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
