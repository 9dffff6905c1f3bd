"""``--like``: a picture is made again with all that was opened for it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from pellucid import checkpoints
from pellucid.images.metadata import read_metadata
from pellucid.model import Model
from pellucid.tiny_vae import TinyVAE, TinyVAEConfig
from references import make_lora


@pytest.fixture
def shelf(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the current folder: two models, another autoencoder, a tiny one, and a LoRA in loras/."""
    monkeypatch.chdir(tmp_path)
    checkpoints.save(model, tmp_path / "one.safetensors")
    checkpoints.save(replace(model, name="two"), tmp_path / "two.safetensors")
    vae = copy.deepcopy(model.vae)
    vae.decoder.conv_out.weight.data.neg_()
    save_file(vae.state_dict(), tmp_path / "vae.safetensors")
    save_file(
        TinyVAE(replace(TinyVAEConfig(), width=8)).state_dict(), tmp_path / "tiny.safetensors"
    )
    make_lora(model, tmp_path / "loras" / "paint.safetensors")
    return tmp_path


PROMPT = "a rabbit <lora:paint>"
MADE_WITH: tuple[tuple[dict[str, Any], dict[str, str]], ...] = (
    ({}, {}),
    ({"--prediction": "flow"}, {"prediction": "flow"}),
    ({"--vae": "vae.safetensors"}, {"vae": "vae.safetensors"}),
    ({"--tiny-vae": "tiny.safetensors", "--decoder": "tiny"}, {"tiny_vae": "tiny.safetensors"}),
    ({"--lora-folder": "loras"}, {"lora_folder": "loras"}),
)


@pytest.mark.parametrize(("options", "recorded"), MADE_WITH)
def test_all_that_was_opened_is_opened_again(
    options: dict[str, str], recorded: dict[str, str], shelf: Path, call: Any
) -> None:
    prompt = PROMPT if "--lora-folder" in options else "a rabbit"
    words = [word for pair in options.items() for word in pair]
    plain = ("--model", "one.safetensors", "--seed", 3, "--out")
    assert call("generate", "a rabbit", *plain, "plain.png")[0] == 0
    assert call("generate", prompt, *words, *plain, "first.png")[0] == 0
    assert call("generate", "--like", "first.png", "--out", "again.png") == (0, "again.png\n", "")
    pixels = [Image.open(f"{name}.png").tobytes() for name in ("plain", "first", "again")]
    assert pixels[1] == pixels[2] and (pixels[0] == pixels[1]) == (not options)
    first, again = (read_metadata(f"{name}.png").request for name in ("first", "again"))
    assert first == again is not None
    names = {"prediction", "vae", "tiny_vae", "lora_folder"} & set(first or {})
    assert {name: (first or {})[name] for name in names} == recorded
    assert (first or {})["model_file"] == "one.safetensors" and (first or {})["model"] == "tiny"


def test_what_is_asked_for_counts_more(shelf: Path, call: Any) -> None:
    words = ("--model", "one.safetensors", "--vae", "vae.safetensors", "--prediction", "v")
    assert call("generate", "a rabbit", *words, "--out", "first.png")[0] == 0
    like = ("generate", "--like", "first.png", "--out", "again.png", "--overwrite")
    assert call(*like, "--prediction", "flow")[2] == ""
    record = read_metadata("again.png").request or {}
    assert (record["prediction"], record["vae"]) == ("flow", "vae.safetensors")
    # Another model has no use for what was opened for that one.
    status, _, err = call(*like, "--model", "two.safetensors")
    assert status == 0 and err == (
        "pellucid: first.png was made by another model than two.safetensors, so its "
        "--prediction and --vae are ignored\n"
    )
    record = read_metadata("again.png").request or {}
    assert record["model_file"] == "two.safetensors" and not {"vae", "prediction"} & set(record)


def test_what_does_not_count_is_not_recorded(shelf: Path, call: Any) -> None:
    words = (
        "--tiny-vae",
        "tiny.safetensors",
        "--lora-folder",
        "loras",
        "--out",
        "a.png",
        "--overwrite",
    )
    words = ("generate", "a rabbit", "--model", "one.safetensors", *words)
    folder = "pellucid: --lora-folder does nothing without <lora:...> in a prompt\n"
    assert call(*words, "--film")[2] == folder
    told = "pellucid: --tiny-vae does nothing without --decoder tiny or --film\n"
    assert call(*words)[2] == folder + told
    assert not {"tiny_vae", "lora_folder"} & set(read_metadata("a.png").request or {})


def test_a_file_that_is_gone(shelf: Path, call: Any, refused: Any) -> None:
    words = ("--model", "one.safetensors", "--vae", "vae.safetensors", "--out", "first.png")
    assert call("generate", "a rabbit", *words)[0] == 0
    for name, option in (("vae", "--vae"), ("one", "--model")):
        (shelf / f"{name}.safetensors").rename(f"{name}.moved")
        told = f"was made with {option} {name}.safetensors, which does not exist here; looked for"
        for command in ("generate", "explain"):
            said = refused(command, "--like", "first.png")
            assert told in said and f"choose another with {option} FILE" in said
        (shelf / f"{name}.moved").rename(f"{name}.safetensors")


def test_a_picture_of_a1111_has_names_alone(shelf: Path, call: Any) -> None:
    text = "a rabbit\nSteps: 2, Sampler: Euler, Seed: 4, Size: 16x16, Model: other, VAE: fine.pt"
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", f"{text}, VAE Decoder: TAESD")
    Image.new("RGB", (16, 16)).save("theirs.png", pnginfo=info)
    words = ("generate", "--like", "theirs.png", "--out", "ours.png", "--overwrite")
    named = ("--model", "one.safetensors", "--tiny-vae", "tiny.safetensors")
    status, _, err = call(*words, *named)
    assert status == 0
    assert err == "pellucid: theirs.png was made with the VAE fine.pt; choose it with --vae FILE\n"
    assert call(*words, *named, "--vae", "vae.safetensors")[2] == ""
    found = read_metadata("ours.png")
    assert (found.request or {})["decoder"] == "tiny" and found.parameters is not None
    assert "VAE: vae.safetensors, VAE Decoder: TAESD" in found.parameters


def test_a_refiner_of_a1111_is_a_name_alone(shelf: Path, call: Any) -> None:
    text = "a rabbit\nSteps: 4, Sampler: Euler, Seed: 4, Size: 16x16, Refiner: fine [7440042bbd]"
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", f"{text}, Refiner switch at: 0.5")
    Image.new("RGB", (16, 16)).save("theirs.png", pnginfo=info)
    words = (
        "generate",
        "--like",
        "theirs.png",
        "--model",
        "one.safetensors",
        "--out",
        "ours.png",
        "--overwrite",
    )
    told = "theirs.png was made with the refiner fine [7440042bbd]; choose it with --refiner FILE"
    status, _, err = call(*words)
    assert status == 0 and told in err
    assert "made with a refiner" in call("explain", *words[1:5], "--json")[2]
    assert call(*words, "--refiner", "two.safetensors")[2] == ""
    found = read_metadata("ours.png")
    assert (found.request or {})["refiner_at"] == 0.5 and found.parameters is not None
    assert "Refiner: two.safetensors, Refiner switch at: 0.5" in found.parameters


def test_another_model_than_the_one_that_made_it_is_told(
    shelf: Path, model: Model, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "embedded", lambda: shelf / "one.safetensors")
    assert call("generate", "a rabbit", "--out", "first.png")[0] == 0
    assert call("generate", "--like", "first.png", "--out", "again.png")[2] == ""
    monkeypatch.setattr(checkpoints, "embedded", lambda: shelf / "two.safetensors")
    told = "first.png was made with the model tiny; choose it with --model FILE"
    assert told in call("generate", "--like", "first.png", "--out", "other.png")[2]
    assert told in call("explain", "--like", "first.png", "--json")[2]


def test_files_are_found_from_another_folder(
    shelf: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative to the picture and the folders above it; in the home folder; by name in the settings."""
    (shelf / "other").mkdir()
    (shelf / "one.safetensors").rename(shelf / "loras" / "one.safetensors")
    lora = ("--lora", "loras/paint.safetensors:0.5")
    words = ("generate", "a rabbit", "--model", "loras/one.safetensors", *lora, "--seed", 3)
    assert call(*words, "--out", "pictures/first.png")[0] == 0
    record = read_metadata("pictures/first.png").request or {}
    assert record["model_file"] == "loras/one.safetensors"
    assert record["loras"] == [["loras/paint.safetensors", 0.5, 0.5]]
    monkeypatch.chdir(shelf / "other")
    first = "../pictures/first.png"
    assert call("generate", "--like", first, "--out", "a.png") == (0, "a.png\n", "")
    assert Image.open("a.png").tobytes() == Image.open(first).tobytes()

    monkeypatch.setenv("HOME", str(shelf))
    home = shelf / "loras" / "one.safetensors"
    assert call("generate", "a rabbit", "--model", home, "--seed", 3, "--out", "b.png")[0] == 0
    assert (read_metadata("b.png").request or {})["model_file"] == "~/loras/one.safetensors"
    assert str(shelf).encode() not in Path("b.png").read_bytes()
    assert call("generate", "--like", "b.png", "--out", "c.png")[0] == 0

    (shelf / "models").mkdir()
    home.rename(shelf / "models" / "one.safetensors")
    status, _, err = call("generate", "--like", "b.png", "--out", "d.png")
    assert status == 2 and "looked for it as ~/loras/one.safetensors" in err
    monkeypatch.setenv("PELLUCID_MODELS", str(shelf / "models"))
    assert call("generate", "--like", "b.png", "--out", "d.png") == (0, "d.png\n", "")
