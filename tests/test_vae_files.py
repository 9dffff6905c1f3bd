"""Autoencoders alone, as files and folders, and models that have none and are given one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pellucid import checkpoints
from pellucid.checkpoints import CheckpointError, load, load_vae, save, tokenizer_files
from pellucid.images.latent_file import save_latents
from pellucid.model import Model
from pellucid.tokenizer import Tokenizer
from references import (
    FAMILIES,
    NAMES,
    VAE_TINY,
    assert_same,
    close,
    draw_small,
    make_lora,
    model_of,
    noise,
    shake,
    their_vae,
)


@pytest.fixture(autouse=True, scope="module")
def small_vocabulary() -> Any:
    """CLIP's vocabulary is looked at elsewhere."""
    pieces = {"a</w>": 0, "!": 1, "<|startoftext|>": 49406, "<|endoftext|>": 49407}
    tokenizer = Tokenizer.from_table(pieces, [])
    patch = pytest.MonkeyPatch()
    patch.setattr(tokenizer_files, "clip_tokenizer", lambda: tokenizer)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {name: model_of(name, vocabulary=49408, layers_per_block=1) for name in NAMES}


@pytest.fixture(scope="module")
def files(models: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each family in the original layout."""
    folder = tmp_path_factory.mktemp("ldm")
    for name, model in models.items():
        save(model, folder / f"{name}.safetensors", to="ldm")
    return {name: folder / f"{name}.safetensors" for name in models}


# ---------------------------------------------------------------- alone


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
def test_vae_alone(
    prefix: str, models: dict[str, Model], files: dict[str, Path], tmp_path: Path
) -> None:
    stored = load_file(files["sd1"])
    start = "first_stage_model."
    alone = {prefix + k.removeprefix(start): w for k, w in stored.items() if k.startswith(start)}
    alone[f"{prefix}loss.logvar"] = torch.zeros(1)
    path = tmp_path / "vae.safetensors"
    save_file(alone, path)
    vae = load_vae(path)
    assert vae.config == models["sd1"].vae.config and not vae.training
    expected = models["sd1"].vae.state_dict()
    assert all(torch.equal(weight, expected[key]) for key, weight in vae.state_dict().items())
    assert load_vae(path, like=FAMILIES["sdxl"].vae).config.scaling_factor == 0.13025
    assert next(load_vae(path, dtype=torch.float16).parameters()).dtype == torch.float16


@pytest.mark.parametrize("old", [True, False])
def test_vae_of_diffusers(old: bool, models: dict[str, Model], tmp_path: Path) -> None:
    theirs = their_vae(models["sd1"].vae.config).state_dict()
    weights = dict(theirs)
    if old:
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for new, name in names.items():
            for key in [key for key in weights if f".{new}." in key]:
                weights[key.replace(f".{new}.", f".{name}.")] = weights.pop(key)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(weights, path)
    vae = load_vae(path)
    assert vae.config == models["sd1"].vae.config
    assert all(torch.equal(weight, theirs[key]) for key, weight in vae.state_dict().items())


def test_vae_out_of_a_model(models: dict[str, Model], files: dict[str, Path]) -> None:
    for name in NAMES:
        vae = load_vae(files[name])
        assert vae.config == models[name].vae.config
        expected = models[name].vae.state_dict()
        assert all(torch.equal(w, expected[key]) for key, w in vae.state_dict().items())


def test_vae_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; expected an autoencoder"):
        load_vae(tmp_path / "none.safetensors")
    path = tmp_path / "vae.safetensors"
    save_file({"lora_unet_a.lora_up.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="no autoencoder in it: it is a LoRA"):
        load_vae(path)
    save_file({"decoder.up.0.block.0.norm1.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="is not a whole autoencoder"):
        load_vae(path)


@torch.no_grad()
def test_a_folder_of_diffusers(tmp_path: Path, refused: Any) -> None:
    """Its config says the scale, and its network gives the same numbers."""
    config = {**VAE_TINY, "scaling_factor": 0.5, "latent_channels": 16}
    theirs = shake(their_vae(replace(FAMILIES["sd1"].vae, **config)))
    theirs.save_pretrained(tmp_path / "alone")
    (tmp_path / "model" / "vae").parent.mkdir()
    shutil.copytree(tmp_path / "alone", tmp_path / "model" / "vae")
    z, pixels = noise(1, 16, 4, 4), noise(1, 3, 16, 16)
    for path in (tmp_path / "alone", tmp_path / "model" / "vae", tmp_path / "model"):
        vae = load_vae(path, like=FAMILIES["sdxl"].vae)
        assert vae.config.scaling_factor == 0.5 and not vae.training
        close(vae.decode(z), theirs.decode(z).sample)
        close(vae.encode(pixels).mean, theirs.encode(pixels).latent_dist.mean)
    told = checkpoints.describe(tmp_path / "alone")
    assert told["kind"] == "a VAE alone"
    assert told["latents"] == "16 channels, 1/4 of the width and height, scale 0.5"
    assert told["parameters"] == {"vae": sum(p.numel() for p in theirs.parameters())}
    assert "one part of a model, AutoencoderKL" in refused(
        "tokens", "a", "--model", tmp_path / "alone"
    )
    (tmp_path / "alone" / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(CheckpointError, match="_class_name is 'VQModel'"):
        load_vae(tmp_path / "alone")


# ---------------------------------------------------------------- a model without one


def without_vae(path: Path, model: Model, form: str) -> Path:
    """A model in a layout that has a place for none, without its autoencoder."""
    save(model, path, to=form)
    if form == "ldm":
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        kept = {k: w for k, w in load_file(path).items() if not k.startswith("first_stage")}
        save_file(kept, path, metadata)
    else:
        shutil.rmtree(path / "vae")
    return path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["ldm", "diffusers"])
def test_it_is_given_one(
    form: str, name: str, models: dict[str, Model], files: dict[str, Path], tmp_path: Path
) -> None:
    model = models[name]
    whole = tmp_path / "whole"
    save(model, whole, to=form)
    path = without_vae(tmp_path / "model", model, form)
    told = checkpoints.describe(path)
    assert told["latents"] == "4 channels; no autoencoder is in it: vae must be given"
    assert set(told["parameters"]) == set(checkpoints.describe(whole)["parameters"]) - {"vae"}
    with pytest.raises(
        CheckpointError, match=r"without its autoencoder .*: vae must be given, a file or"
    ):
        load(path)
    assert_same(load(whole), load(path, vae=files[name]))
    # What it has itself is not read where another is given.
    other = {key: weight + 1 for key, weight in model.vae.state_dict().items()}
    save_file(other, tmp_path / "vae.safetensors")
    for place in (path, whole):
        given = load(place, vae=tmp_path / "vae.safetensors").vae
        assert given.config == model.vae.config  # with the scale of the family
        assert all(torch.equal(w, other[key]) for key, w in given.state_dict().items())


def test_the_autoencoder_must_fit(
    models: dict[str, Model], files: dict[str, Path], tmp_path: Path
) -> None:
    path = without_vae(tmp_path / "model", models["sd1"], "ldm")
    wide = shake(their_vae(replace(FAMILIES["sd1"].vae, **VAE_TINY, latent_channels=16)))
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(CheckpointError, match=r"has latents of 16 channels .*; the model needs 4$"):
        load(path, vae=tmp_path / "wide")
    with pytest.raises(CheckpointError, match="needs 4 at 1/4"):
        load(files["sd1"], vae=tmp_path / "wide")
    with pytest.raises(CheckpointError, match="does not exist; expected an autoencoder"):
        load(path, vae=tmp_path / "none")


def test_every_command_takes_one(
    models: dict[str, Model],
    files: dict[str, Path],
    call: Any,
    refused: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw_small(monkeypatch, "sd1")
    path = without_vae(tmp_path / "model.safetensors", models["sd1"], "ldm")
    picture, latents = tmp_path / "grey.png", tmp_path / "x.latents.safetensors"
    Image.new("RGB", (64, 64), "grey").save(picture)
    save_latents(latents, noise(1, 4, 8, 8), {})
    page, small = tmp_path / "page.html", ("--steps", 1, "--size", "64x64", "--seed", 1)
    lora = make_lora(models["sd1"], tmp_path / "lora.safetensors")
    for words in (
        ("generate", "a", *small, "--out", tmp_path / "out"),
        ("explain", "a", *small, "--out", page, "--overwrite"),
        ("noise", picture, "--t", 500, "--out", page, "--overwrite"),
        ("autoencoder", picture, "--out", page, "--overwrite"),
        ("decode", latents, "--out", tmp_path / "decoded"),
        ("tokens", "a"),
        ("lora", lora),
    ):
        pair = [(*words, "--model", path), (*words, "--model", files["sd1"])]
        assert "vae must be given, a file or folder that has one" in refused(*pair[0])
        status, out, err = call(*pair[0], "--vae", files["sd1"])
        assert status == 0, err
        if words[0] in ("generate", "decode"):
            expected = call(*pair[1])[1].strip()
            assert Image.open(out.strip()).tobytes() == Image.open(expected).tobytes()
    again = tmp_path / "again.safetensors"
    assert call("convert", path, again, "--to", "ldm", "--vae", files["sd1"])[0] == 0
    one, other = load_file(files["sd1"]), load_file(again)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_native_model_is_given_another(models: dict[str, Model], tmp_path: Path) -> None:
    save(models["sdxl"], tmp_path / "native")
    other = {key: weight + 1 for key, weight in models["sdxl"].vae.state_dict().items()}
    save_file(other, tmp_path / "vae.safetensors")
    given = load(tmp_path / "native", vae=tmp_path / "vae.safetensors").vae
    assert given.config == models["sdxl"].vae.config
    assert all(torch.equal(w, other[key]) for key, w in given.state_dict().items())


def test_an_autoencoder_of_another_class_is_none(
    models: dict[str, Model], files: dict[str, Path], tmp_path: Path
) -> None:
    save(models["sd1"], tmp_path / "model", to="diffusers")
    index = tmp_path / "model" / "model_index.json"
    entries = json.loads(index.read_text())
    for kind in ("AutoencoderTiny", None):
        entries["vae"] = [None if kind is None else "diffusers", kind]
        index.write_text(json.dumps(entries))
        with pytest.raises(
            CheckpointError, match=r"a folder vae of AutoencoderKL\): vae must be given"
        ):
            load(tmp_path / "model")
        assert checkpoints.describe(tmp_path / "model")["unused parts"] == (
            [] if kind is None else ["vae"]
        )
        assert_same(load(tmp_path / "model", vae=files["sd1"]), models["sd1"])
