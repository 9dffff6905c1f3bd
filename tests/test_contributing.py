"""CONTRIBUTING.md: each "how to add" names the test that follows it; here are two of them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pellucid import checkpoints
from pellucid.checkpoints import families, formats
from pellucid.model import Defaults, Model
from references import assert_same, model_of

ROOT = Path(__file__).parents[1]
Add = Callable[[ModuleType, str, str], None]


def test_each_how_to_names_a_test_that_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    how_to = text.split("## How to add ...")[1].split("\n### ")[1:]
    assert [part.split("\n")[0].split(" ", 1)[1] for part in how_to] == [
        "sampler",
        "checkpoint format",
        "model family",
        "data source",
        "metric",
        "option",
    ]
    for part in how_to:
        (test,) = re.findall(r"`(tests/\w+\.py)::(\w+)`", part)
        assert f"\ndef {test[1]}(" in (ROOT / test[0]).read_text("utf-8"), test
        folders = [name.rsplit("/", 1)[0] for name in re.findall(r"`([\w/]+/NAME\.py)`", part)]
        assert all((ROOT / "src" / "pellucid" / folder).is_dir() for folder in folders)
    for name in re.findall(r"\]\((src/[\w/.]+)\)", text):
        assert (ROOT / name).exists(), name


@pytest.fixture
def new_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Add]:
    """Adds a file to a package, for the length of a test."""
    before = set(sys.modules)
    made = []

    def add(package: ModuleType, name: str, source: str) -> None:
        folder = tmp_path / f"new_{name}"
        folder.mkdir()
        (folder / f"{name}.py").write_text(source)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        made.append((package, name))

    yield add
    for package, name in made:
        vars(package).pop(name, None)
    for name in {f"{package.__name__}.{name}" for package, name in made} - before:
        sys.modules.pop(name, None)


FORMAT = '''
"""A folder with a file of Pellucid's own format in it."""

import dataclasses

from pellucid.checkpoints.formats import native
from pellucid.checkpoints.weights import Source


def matches(source):
    return (source.path / "boxed.safetensors").is_file()


def examine(source, prediction=None):
    inner = native.examine(Source(source.path / "boxed.safetensors"), prediction)
    return dataclasses.replace(inner, form="boxed")


def write(model, path, dtype=None):
    path.mkdir()
    return native.write(model, path / "boxed.safetensors", dtype)
'''


def test_a_format_is_one_new_file(
    new_file: Add, model: Model, model_file: Path, tmp_path: Path, call: Any, refused: Any
) -> None:
    """It is found, read, written, described, and in the choices of the command line."""
    box, copy = tmp_path / "box", tmp_path / "copy"
    assert "no format 'boxed'" in refused("convert", model_file, box, "--to", "boxed")
    new_file(formats, "boxed", FORMAT)
    assert "boxed" in checkpoints.writable_formats()
    assert checkpoints.save(model, box, to="boxed") == ()
    assert_same(model, checkpoints.load(box))
    assert checkpoints.describe(box)["format"] == "boxed"
    assert call("convert", box, copy, "--to", "boxed") == (0, f"{copy}\n", "")
    assert call("generate", "a rabbit", "--model", copy, "--out", tmp_path / "a.png")[0] == 0
    assert "nearest first: boxed" in refused("convert", box, tmp_path / "c", "--to", "boxd")


FAMILY = '''
"""A family as Stable Diffusion 1 is, with narrower texts."""

from dataclasses import replace

from pellucid.checkpoints.families import sd1
from pellucid.model import Defaults

FAMILY = replace(
    sd1.FAMILY,
    title="Narrow Diffusion",
    backbone=replace(sd1.FAMILY.backbone, cross_attention_dim=64),
    defaults={"narrow": Defaults(7, 3.0, "euler", "karras", 256, 192)},
)
'''


@pytest.mark.parametrize("form", ["ldm", "diffusers"])
def test_a_family_is_one_new_file(new_file: Add, form: str, tmp_path: Path, call: Any) -> None:
    """Its models are recognised in every format, and have its title and its defaults."""
    made, path = model_of("sd1", vocabulary=49_408), tmp_path / "narrow.safetensors"
    checkpoints.save(made, path, to=form)
    assert checkpoints.describe(path)["family"] == "Stable Diffusion 1"
    new_file(families, "narrow", FAMILY)
    assert "narrow" in families.known()
    assert checkpoints.describe(path)["family"] == "Narrow Diffusion"
    assert "Narrow Diffusion" in call("info", path)[1]
    again = checkpoints.load(path)
    assert again.defaults == Defaults(7, 3.0, "euler", "karras", 256, 192)
    assert torch.equal(again.backbone.conv_in.weight, made.backbone.conv_in.weight)  # type: ignore[union-attr]
