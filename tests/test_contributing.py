"""CONTRIBUTING.md: each "how to add" names the test that follows it; here are two of them.

Also: a header is read once, and families that are alike."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import pellucid
from pellucid import checkpoints, cli, presets
from pellucid.checkpoints import families, formats, weights
from pellucid.model import Defaults, Model
from pellucid.safetensors_header import read_header
from references import FAMILIES, assert_same, model_of

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
        "section of the page of a run",
        "option",
        "backend",
        "command",
        "HTTP interface",
        "view of the studio",
        "noise",
    ]
    for part in how_to:
        (test,) = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", part)
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
from pellucid.checkpoints.weights import CheckpointSource


WRITES_FOLDER = True


def matches(source):
    return (source.path / "boxed.safetensors").is_file()


def examine(source, prediction=None):
    inner = native.examine(CheckpointSource(source.path / "boxed.safetensors"), prediction)
    return dataclasses.replace(inner, form="boxed")


def write(model, path, dtype=None):
    path.mkdir(exist_ok=True)
    return native.write(model, path / "boxed.safetensors", dtype)
'''


def test_a_format_is_one_new_file(
    new_file: Add, model: Model, model_file: Path, tmp_path: Path, call: Any, refused: Any
) -> None:
    """It is found, read, written, described, and in the choices of the command line."""
    box, copy = tmp_path / "box", tmp_path / "copy"
    assert "unknown format 'boxed'" in refused("convert", model_file, box, "--to", "boxed")
    new_file(formats, "boxed", FORMAT)
    assert "boxed" in checkpoints.writable_formats()
    assert checkpoints.save(model, box, to="boxed") == ()
    assert_same(model, checkpoints.load(box))
    assert checkpoints.load(box).name == model.name
    assert checkpoints.describe(box)["format"] == "boxed"
    assert call("convert", box, copy, "--to", "boxed") == (0, f"{copy}\n", "")
    assert call("convert", box, copy, "--to", "boxed", "--overwrite")[0] == 0
    assert "--to native writes a file" in refused(
        "convert", box, copy, "--to", "native", "--overwrite"
    )
    assert call("generate", "a rabbit", "--model", copy, "--out", tmp_path / "a.png")[0] == 0
    assert "nearest first: boxed" in refused("convert", box, tmp_path / "c", "--to", "boxd")


COMMAND = '''
"""A command for tests."""

import typer

from pellucid.cli._app import app


@app.command()
def greet(name: str) -> None:
    """Greet."""
    typer.echo(f"hello {name}")
'''


def test_a_command_is_one_new_file(
    new_file: Add, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found, and part of the command line."""
    monkeypatch.setattr(cli.app, "registered_commands", [*cli.app.registered_commands])
    new_file(cli, "greet", COMMAND)
    assert call("greet", "frog") == (0, "hello frog\n", "")
    assert "greet" in call("--help")[1]


WIDE = '''
"""Wide Diffusion: SD1's parts for latents of 6 channels."""

from dataclasses import replace

from pellucid.backbones.unet import SD15
from pellucid.checkpoints.families import Family, Tower
from pellucid.clip import SD1_TEXT
from pellucid.model import Defaults, LatentSpace, TextEncoding
from pellucid.vae import SD_VAE

FAMILY = Family(
    title="Wide Diffusion",
    backbone=replace(SD15, in_channels=6, out_channels=6, cross_attention_dim=896),
    towers=(Tower(replace(SD1_TEXT, width=896), "cond_stage_model.transformer.", "text_encoder"),),
    text_encoding=TextEncoding(layer=-2, pads=(0,)),
    vae=replace(SD_VAE, latent_channels=6, scaling_factor=0.5),
    defaults={"wide": Defaults(12, 3.0, "heun", "karras", 640, 640)},
    latents=LatentSpace(colors=((0.1, 0.2, 0.3),) * 6, tiny_vae="taewide"),
    pipeline="WideDiffusion",
    lora_versions=("wide",),
)
'''


@pytest.fixture
def wide(new_file: Add) -> Model:
    """A thin model of the new family."""
    new_file(families, "wide", WIDE)
    family = families.known()["wide"]
    sd1 = model_of("sd1", vocabulary=49408, in_channels=6, out_channels=6)
    vae = type(sd1.vae)(replace(sd1.vae.config, latent_channels=6, scaling_factor=0.5)).eval()
    return replace(
        sd1,
        vae=vae,
        text_encoding=family.text_encoding,
        defaults=family.defaults_for("eps"),
        latents=family.latents,
    )


@pytest.mark.parametrize("form", ["ldm", "diffusers", "native"])
def test_a_family_is_one_new_file(form: str, wide: Model, tmp_path: Path, call: Any) -> None:
    """It is recognized in every layout, described, loaded, and its settings are its own."""
    path = tmp_path / ("model" if form == "diffusers" else "model.safetensors")
    checkpoints.save(wide, path, to=form)
    facts = checkpoints.describe(path)
    assert facts["family"] == "Wide Diffusion"
    assert facts["defaults"]["sampler"] == "heun" and facts["defaults"]["width"] == 640
    assert "6 channels" in facts["latents"] and facts["latents"].endswith("scale 0.5")
    assert "Wide Diffusion" in call("info", path)[1]
    model = checkpoints.load(path)
    assert model.defaults == Defaults(12, 3.0, "heun", "karras", 640, 640)
    assert_same(wide, model)
    assert model.latents == families.known()["wide"].latents
    if form == "diffusers":
        index = json.loads((path / "model_index.json").read_text())
        assert index["_class_name"] == "WideDiffusionPipeline"
    assert "wide" in families.known() and "wide" not in FAMILIES


def test_what_else_knows_a_new_family(
    wide: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoRAs and embeddings by name, a preset, and the file of its tiny autoencoder."""
    names = {"a.lora_down.weight": 3, "a.lora_up.weight": 3}
    tensors = {key: wide.vae.quant_conv.weight.new_ones(2, n) for key, n in names.items()}
    save_file(tensors, tmp_path / "lora.safetensors", {"ss_base_model_version": "wide_v2"})
    assert checkpoints.describe_lora(tmp_path / "lora.safetensors")["family"] == "Wide Diffusion"
    save_file({"frog": tensors["a.lora_up.weight"].new_ones(2, 896)}, tmp_path / "frog.safetensors")
    assert checkpoints.describe(tmp_path / "frog.safetensors")["words"] == {
        "frog": "2 of width 896"
    }
    with pytest.raises(checkpoints.CheckpointError, match="this embedding is for Wide Diffusion"):
        checkpoints.load_embeddings([tmp_path / "frog.safetensors"], wide)
    with pytest.raises(checkpoints.CheckpointError, match=r"expected .* taewide_decoder"):
        checkpoints.load_tiny_vae(tmp_path / "none", of=wide.vae.config)
    monkeypatch.setattr(pellucid, "presets", presets)  # which is restored after the test
    monkeypatch.delitem(sys.modules, "pellucid.presets")
    again = importlib.import_module("pellucid.presets")
    assert again.preset("wide").steps == 12


NARROW = '''
"""A family as Stable Diffusion 1 is, with narrower texts, and a variant of it with a smaller U-Net."""

from dataclasses import replace

from pellucid.checkpoints.families import sd1
from references import UNETS

NARROW = replace(
    sd1.FAMILY,
    title="Narrow Diffusion",
    backbone=replace(sd1.FAMILY.backbone, cross_attention_dim=64),
)
SMALL = replace(
    NARROW, title="Small Diffusion", backbone=replace(UNETS["sd1"], layers_per_block=1)
)
'''


@pytest.mark.parametrize("form", ["ldm", "diffusers"])
def test_a_variant_takes_no_model_of_its_original(new_file: Add, form: str, tmp_path: Path) -> None:
    """Although its file is the first by name, only models with exactly its U-Net are its own."""

    def title(name: str, **unet: Any) -> Any:
        made, path = model_of("sd1", vocabulary=49_408, **unet), tmp_path / name
        checkpoints.save(made, path, to=form)
        return checkpoints.describe(path)["family"]

    new_file(families, "narrow", NARROW + "FAMILY = NARROW")
    new_file(families, "anime", NARROW + 'FAMILY = replace(SMALL, variant_of="narrow")')
    assert list(families.known())[-1] == "anime"
    assert title("original.safetensors") == "Narrow Diffusion"
    assert title("variant.safetensors", layers_per_block=1) == "Small Diffusion"
    inpainting = title("inpainting.safetensors", layers_per_block=1, in_channels=9)
    assert inpainting == "Small Diffusion inpainting"


def test_families_that_recognise_the_same_models_are_refused(new_file: Add) -> None:
    new_file(families, "narrow", NARROW + "FAMILY = NARROW")
    new_file(families, "anime", NARROW + "FAMILY = SMALL")
    with pytest.raises(ValueError, match=r"'anime' and 'narrow' have the same traits; one of them"):
        families.known()
    new_file(families, "absent", NARROW + 'FAMILY = replace(SMALL, variant_of="narow")')
    with pytest.raises(ValueError, match=r"variant_of of family 'absent' must be .*, got 'narow'"):
        families.known()


@pytest.mark.parametrize("form", ["ldm", "diffusers", "native"])
def test_a_header_is_read_once(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each load and each description, whatever formats were asked before."""
    path = tmp_path / ("model" if form == "diffusers" else "model.safetensors")
    checkpoints.save(model_of("sd1", vocabulary=49408, layers_per_block=1), path, to=form)
    read: list[Path] = []

    def counted(file: Path) -> dict[str, Any]:
        read.append(file)
        return read_header(file)

    monkeypatch.setattr(weights, "read_header", counted)
    for use in (checkpoints.load, checkpoints.describe):
        read.clear()
        use(path)
        assert read and len(read) == len(set(read))
    if path.is_file():
        other = tmp_path / "other.safetensors"
        save_file(load_file(path), other)
        if form == "ldm":
            read.clear()
            checkpoints.load(other, vae=path)
            assert sorted(read) == sorted([other, path])
