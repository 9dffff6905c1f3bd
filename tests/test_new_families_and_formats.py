"""A new family of models is one file, and so is a new checkpoint format; a header is read once."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import pellucid
from pellucid import checkpoints, presets
from pellucid.checkpoints import families, formats, weights
from pellucid.checkpoints.header import read_header
from pellucid.model import Model
from references import FAMILIES, assert_same, model_of

FAMILY_FILE = '''
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

FORMAT_FILE = '''
"""A format for tests: JSON that names a native file."""

import json

from pellucid.checkpoints.formats import native
from pellucid.checkpoints.weights import Source


def matches(source):
    return source.path.suffix == ".link"


def examine(source, prediction=None):
    return native.examine(Source(source.path.with_name(source.path.read_text())), prediction)


def write(model, path, dtype=None):
    native.write(model, path.with_suffix(".safetensors"), dtype)
    path.write_text(path.with_suffix(".safetensors").name)
    return ()
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Adds one file to a package of plug-ins."""
    added: list[str] = []

    def add(package: Any, stem: str, text: str) -> None:
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / f"{stem}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        added.append(f"{package.__name__}.{stem}")

    yield add
    for name in added:
        sys.modules.pop(name, None)
        package, _, stem = name.rpartition(".")
        vars(sys.modules[package]).pop(stem, None)


@pytest.fixture
def wide(plugin: Callable[..., None]) -> Model:
    """A thin model of the new family."""
    plugin(families, "wide", FAMILY_FILE)
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
def test_a_new_family_is_one_file(form: str, wide: Model, tmp_path: Path) -> None:
    """It is recognized in every layout, described, loaded, and its settings are its own."""
    path = tmp_path / ("model" if form == "diffusers" else "model.safetensors")
    checkpoints.save(wide, path, to=form)
    facts = checkpoints.describe(path)
    assert facts["family"] == "Wide Diffusion"
    assert facts["defaults"]["sampler"] == "heun" and facts["defaults"]["width"] == 640
    assert "6 channels" in facts["latents"] and facts["latents"].endswith("scale 0.5")
    model = checkpoints.load(path)
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
        checkpoints.load_embedding(tmp_path / "frog.safetensors", wide)
    with pytest.raises(checkpoints.CheckpointError, match=r"expected .* taewide_decoder"):
        checkpoints.load_tiny_vae(tmp_path / "none", of=wide.vae.config)
    monkeypatch.setattr(pellucid, "presets", presets)  # which is restored after the test
    monkeypatch.delitem(sys.modules, "pellucid.presets")
    again = importlib.import_module("pellucid.presets")
    assert again.preset("wide").steps == 12


def test_a_new_format_is_one_file(
    plugin: Callable[..., None], model: Model, tmp_path: Path, refused: Any, call: Any
) -> None:
    """It is read, described, written, and a choice of `pellucid convert`."""
    plugin(formats, "linked", FORMAT_FILE)
    path = tmp_path / "model.link"
    assert checkpoints.save(model, path, to="linked") == ()
    assert checkpoints.load(path).name == model.name
    assert checkpoints.describe(path)["format"] == "native"
    assert "linked" in checkpoints.writable_formats()
    again = tmp_path / "again.link"
    assert call("convert", path, again, "--to", "linked")[0] == 0
    assert checkpoints.load(again).backbone.config == model.backbone.config
    assert "linked" in refused("convert", path, tmp_path / "x", "--to", "linkd")


@pytest.mark.parametrize("form", ["ldm", "diffusers", "native"])
def test_a_header_is_read_once(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each load and each description, whatever formats were asked before."""
    path = tmp_path / ("model" if form == "diffusers" else "model.safetensors")
    checkpoints.save(model_of("sd1", vocabulary=49408), path, to=form)
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
