"""The commands `convert` and `info`, and how a command opens a model."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from pellucid import checkpoints
from pellucid.checkpoints import load, save, tokenizer_files
from pellucid.checkpoints.formats import ldm
from pellucid.images.latent_file import save_latents
from pellucid.model import Model
from pellucid.opening import open_model
from pellucid.runtime.precision import native_bfloat16
from pellucid.schedule import Schedule
from pellucid.tokenizer import Tokenizer
from references import NAMES, draw_small, make_lora, model_of


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of each family in the original layout."""
    folder = tmp_path_factory.mktemp("ldm")
    tokenizer = Tokenizer.from_table(
        {"a": 0, "!": 1, "<|startoftext|>": 49406, "<|endoftext|>": 49407}, []
    )
    patch = pytest.MonkeyPatch()
    patch.setattr(tokenizer_files, "clip_tokenizer", lambda: tokenizer)
    for name in NAMES:
        ldm.write(
            model_of(name, vocabulary=49408, layers_per_block=1), folder / f"{name}.safetensors"
        )
    yield {name: folder / f"{name}.safetensors" for name in NAMES}
    patch.undo()


# ---------------------------------------------------------------- convert


def test_there_and_back(files: dict[str, Path], call: Any, tmp_path: Path) -> None:
    native, back = tmp_path / "native", tmp_path / "back.safetensors"
    assert call("convert", files["sdxl"], native, "--to", "native") == (0, f"{native}\n", "")
    assert checkpoints.describe(native)["format"] == "native"
    assert call("convert", native, back, "--to", "ldm")[0] == 0
    one, other = load_file(files["sdxl"]), load_file(back)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    # What is there is not written over, but when it is asked for.
    status, out, err = call("convert", native, back, "--to", "ldm", "--dtype", "fp16")
    assert (status, out) == (2, "") and "--overwrite replaces it" in err
    assert call("convert", native, back, "--to", "ldm", "--dtype", "fp16", "--overwrite")[0] == 0
    assert {weight.dtype for weight in load_file(back).values()} == {torch.float16}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.safetensors", "native"]
    new = tmp_path / "a" / "new" / "folder.safetensors"
    assert call("convert", native, new, "--to", "ldm") == (0, f"{new}\n", "")


def test_sd2(files: dict[str, Path], call: Any, tmp_path: Path) -> None:
    """It says what is wanted, and what diffusers' layout leaves out: what nothing reads."""
    path, folder = tmp_path / "sd2.safetensors", tmp_path / "folder"
    save_file(load_file(files["sd2"]), path)  # without the metadata
    status, out, _ = call("info", path)
    assert status == 0 and "prediction must be given, eps or v" in out
    assert "defaults:     depend on the prediction\n" in out
    assert "prediction:   v\n" in call("info", path, "--prediction", "v")[1]
    status, _, err = call("convert", path, folder, "--to", "diffusers")
    assert status == 2 and "prediction must be given, eps" in err
    words = ("convert", path, folder, "--to", "diffusers", "--prediction", "v")
    status, _, err = call(*words)
    assert status == 0 and load(folder).prediction == "v"
    assert "the layers after layer 2 of text_encoder" in err.splitlines()[0]
    assert "the projection of text_encoder" in err.splitlines()[1]


@pytest.mark.parametrize("to", ["ldm", "diffusers"])
def test_a_prediction_is_asked_for_only_where_it_counts(
    to: str, files: dict[str, Path], call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_small(monkeypatch, "sd2")
    model = load(files["sd2"], prediction="v")
    path = tmp_path / "sd2"
    save(model, path, to=to)
    if to == "ldm":
        weights = load_file(path)
        weights.pop("v_pred")
        save_file(weights, path)  # without the metadata
    else:
        (path / "scheduler" / "scheduler_config.json").unlink()
    save_latents(Path("a.latents.safetensors"), torch.zeros(1, 4, 2, 2), {})
    lora = make_lora(model, Path("lora.safetensors"))
    Image.new("RGB", (64, 64)).save("a.png")
    named = ("--model", path)
    for words in (
        ("tokens", "a cat"),
        ("decode", "a.latents.safetensors"),
        ("autoencoder", "a.png"),
        ("lora", lora),
    ):
        assert call(*words, *named)[::2] == (0, ""), words
    assert "vision tower" in call("clip", "a.png", *named)[2]
    small = ("--steps", 1, "--size", 64)
    for words in (
        ("generate", "a cat", *small, "--out", "b.png"),
        ("explain", "a cat", *small),
    ):
        status, _, err = call(*words, *named)
        assert status == 2 and "prediction must be given, eps" in err
        assert call(*words, *named, "--prediction", "v")[::2] == (0, ""), words
    assert "rising" in call("noise", "a.png", "--t", "5,4", *named, "--prediction", "v")[2]
    assert "prediction must be given, eps" in call("noise", "a.png", "--t", "4,5", *named)[2]
    assert "prediction must be given, eps" in call("evaluate", *named)[2]
    assert "art64" in call("evaluate", *named, "--prediction", "v")[2]  # which is checked next


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("none", "x", "--to", "ldm"), "none does not exist"),
        (("sd1", "x", "--to", "ldmm"), "unknown format 'ldmm'; choices, nearest first: ldm"),
        (
            ("sd1", "x", "--to", "ldm", "--dtype", "int8"),
            "--dtype must be one of fp32, fp16, bf16",
        ),
        (("sd1", "x", "--to", "ldm", "--prediction", "w"), "unknown prediction 'w'"),
        (("sd1", ".", "--to", "ldm", "--overwrite"), "is a folder; --to ldm writes a file"),
        (("sd1", ".", "--to", "diffusers", "--overwrite"), "it was left alone"),
        (("sd1", "file/x", "--to", "diffusers"), "file is a file and not a folder"),
        (("sd1", "x"), "--to"),
    ],
)
def test_conversions_that_are_refused(
    words: tuple[str, ...], sentence: str, files: dict[str, Path], call: Any, tmp_path: Path
) -> None:
    source = files.get(words[0], tmp_path / words[0])
    Path(tmp_path, "file").write_text("")
    status, out, err = call("convert", source, tmp_path / words[1], *words[2:])
    assert (status, out) == (2, "") and sentence in err
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


# ---------------------------------------------------------------- info

FACTS = {
    "format",
    "family",
    "parameters",
    "types",
    "prediction",
    "schedule",
    "defaults",
    "latents",
    "prompt",
    "unused keys",
    "runs here on",
}


@pytest.mark.parametrize("to", ["diffusers", "ldm", "native"])
def test_info_of_every_layout(to: str, files: dict[str, Path], call: Any, tmp_path: Path) -> None:
    path = tmp_path / "model"
    save(model_of("sdxl", vocabulary=49408), path, torch.float16, to=to)
    status, out, err = call("info", path, "--json")
    told = json.loads(out)
    assert (status, err) == (0, "")
    assert told.keys() >= FACTS
    assert (told["format"], told["name"]) == (to, "tiny" if to == "native" else "model")
    model = load(path)
    expected = {
        name: sum(p.numel() for p in part.parameters())
        for name in ("backbone", "vae", "text", "text_2")
        if (part := getattr(model, name)) is not None
    }
    assert told["parameters"] == expected
    assert list(told["types"]) == ["float16"]
    assert told["prediction"] == model.prediction == "eps"
    assert told["family"] == "Stable Diffusion XL"
    assert told["schedule"]["name"] == "scaled_linear" and "shift" not in told["schedule"]
    assert told["defaults"]["width"] == 1024
    assert told["runs here on"].startswith(("cpu, float32: ", "cpu, bfloat16: ", "cuda", "mps"))
    lines = call("info", path)[1].splitlines()
    assert len(lines) == len(told)
    assert any(line.startswith("parameters:") and "text_2" in line for line in lines)


def put(path: Path, **weights: Tensor) -> Path:
    save_file({key.replace("__", "."): value for key, value in weights.items()}, path)
    return path


def test_info_of_what_is_no_model(files: dict[str, Path], call: Any, tmp_path: Path) -> None:
    start = "first_stage_model."
    stored = load_file(files["sd1"])
    vae = {k.removeprefix(start): w for k, w in stored.items() if k.startswith(start)}
    zeros = torch.zeros
    things = {
        "a VAE alone": put(tmp_path / "vae", **vae),
        "a LoRA": put(
            tmp_path / "lora",
            lora_unet_mid_block_attentions_0_proj_in__lora_down__weight=zeros(4, 320),
            lora_unet_mid_block_attentions_0_proj_in__lora_up__weight=zeros(320, 4),
        ),
        "a textual-inversion embedding": put(tmp_path / "frog", emb_params=zeros(2, 768)),
        "a ControlNet": put(tmp_path / "net", control_model__time_embed__0__weight=zeros(3, 2)),
        "a text encoder alone": put(tmp_path / "te", text_model__final_layer_norm__bias=zeros(2)),
        "a U-Net alone": put(tmp_path / "unet", mid_block__resnets__0__conv1__bias=zeros(2)),
    }
    save_file({"frog": zeros(2, 768)}, tmp_path / "word")  # a word as people write it
    things |= {"a textual-inversion embedding  ": tmp_path / "word"}
    towers = {"clip_l": zeros(2, 768), "clip_g": zeros(2, 1280)}
    save_file(towers, tmp_path / "big-frog.safetensors")
    told = json.loads(call("info", tmp_path / "big-frog.safetensors", "--json")[1])
    assert told["words"] == {"big-frog": "2 of width 768 and 1280"}
    torch.save({"string_to_param": {"*": zeros(2, 768)}}, tmp_path / "frog.pt")
    things |= {"a textual-inversion embedding ": tmp_path / "frog.pt"}
    for kind, path in things.items():
        status, out, err = call("info", path, "--json")
        assert (status, err) == (0, "")
        told = json.loads(out)
        assert told["kind"] == kind.strip()
        if "VAE" in kind:
            assert told["latents"].startswith("4 channels, 1/4 of")
            assert told["latents"].endswith("the file does not say their scale")
        if "embedding" in kind:
            assert told["words"] == {"frog": "2 of width 768"}


@pytest.mark.parametrize(
    ("schedule", "counts"),
    [
        (Schedule(), {"T", "beta_start", "beta_end", "zero_terminal_snr"}),
        (Schedule("linear"), {"T", "beta_start", "beta_end", "zero_terminal_snr"}),
        (Schedule("cosine"), {"T", "zero_terminal_snr"}),
        (Schedule("flow", shift=3.0), {"T", "shift"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_info_names_what_counts_for_a_schedule(
    schedule: Schedule, counts: set[str], model: Model, call: Any, tmp_path: Path
) -> None:
    save(replace(model, schedule=schedule), tmp_path / "model")
    told = json.loads(call("info", tmp_path / "model", "--json")[1])
    assert told["schedule"].keys() == {"name"} | counts
    assert told["schedule"].items() <= asdict(schedule).items()
    assert told["family"] == "Pellucid's own, backbone unet"


def test_info_names_unused_keys(files: dict[str, Path], call: Any, tmp_path: Path) -> None:
    weights = load_file(files["sd1"]) | {f"model_ema.x{i}": torch.zeros(1) for i in range(9)}
    save_file(weights, tmp_path / "more.safetensors")
    out = call("info", tmp_path / "more.safetensors")[1]
    assert "9: model_ema.x0, model_ema.x1, model_ema.x2, model_ema.x3, model_ema.x4, ..." in out


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04rubbish", b"\x80\x02rubbish"])
def test_info_of_rubbish(content: bytes, call: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    for wrong in (path, tmp_path, tmp_path / "none"):
        status, out, err = call("info", wrong)
        assert (status, out) == (2, "")
        assert err.startswith("pellucid: ") and str(wrong) in err and err.count("\n") == 1


# ---------------------------------------------------------------- how a command opens a model


def test_another_autoencoder(files: dict[str, Path], tmp_path: Path) -> None:
    stored = load_file(files["sd1"])
    start = "first_stage_model."
    alone = {k.removeprefix(start): w + 1 for k, w in stored.items() if k.startswith(start)}
    save_file(alone, tmp_path / "vae.safetensors")
    given = {"vae": tmp_path / "vae.safetensors", "device": "cpu", "dtype": "float32"}
    model = open_model(files["sdxl"], **given)
    assert model.vae.config == load(files["sdxl"]).vae.config  # the model's scale of latents
    assert torch.equal(model.vae.decoder.conv_in.bias, alone["decoder.conv_in.bias"])
    alone["decoder.conv_in.weight"] = torch.zeros(64, 16, 3, 3)
    alone["encoder.conv_out.weight"] = torch.zeros(32, 64, 3, 3)
    alone["encoder.conv_out.bias"] = torch.zeros(32)
    alone["quant_conv.weight"], alone["quant_conv.bias"] = (
        torch.zeros(32, 32, 1, 1),
        torch.zeros(32),
    )
    alone["post_quant_conv.weight"] = torch.zeros(16, 16, 1, 1)
    alone["post_quant_conv.bias"] = torch.zeros(16)
    save_file(alone, tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match=r"has latents of 16 channels .* needs 4"):
        open_model(files["sdxl"], vae=tmp_path / "wide.safetensors", device="cpu")


def test_device_and_type(files: dict[str, Path]) -> None:
    path = files["sd1"]
    auto = torch.bfloat16 if native_bfloat16() else torch.float32
    assert next(open_model(path, device="cpu").backbone.parameters()).dtype == auto
    exact = open_model(path, device="cpu", dtype="float32")
    assert next(exact.backbone.parameters()).dtype == torch.float32
    half = open_model(path, device="cpu", dtype="bf16")
    assert next(half.backbone.parameters()).dtype == torch.bfloat16
    assert checkpoints.type_of(path) == torch.float32
    with pytest.raises(ValueError, match=r"device must be one of auto, .*, got 'gpu'"):
        open_model(path, device="gpu")
    with pytest.raises(ValueError, match=r"dtype must be one of .*, got 'int8'"):
        open_model(path, device="cpu", dtype="int8")


def test_generate_has_the_options(
    model_file: Path, files: dict[str, Path], call: Any, tmp_path: Path
) -> None:
    words = ("generate", "a rabbit", "--model", model_file, "--device", "cpu", "--out", tmp_path)
    assert call(*words, "--prediction", "v", "--dtype", "float32")[0] == 0
    status, _, err = call(*words, "--vae", files["sd1"])
    assert status == 2 and "needs 4 at 1/2" in err
    status, _, err = call(*words, "--prediction", "w")
    assert status == 2 and "unknown prediction 'w'" in err
