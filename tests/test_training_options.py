"""The settings of the loops: device, size, width, samples, further losses, a folder of pictures.

Three steps of tiny batches each; whether anything is learnt is not asked here.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pellucid import checkpoints, data
from pellucid.cascade import SuperResolutionConfig
from pellucid.cli.train import _options
from pellucid.data import SourceOptions, mnist
from pellucid.data import load as load_source
from pellucid.data.emoji import EMOJIBASE, Concept, EmojiArt
from pellucid.data.imagefolder import ImageFolder
from pellucid.evaluate import classifier
from pellucid.plugins import discover
from pellucid.recipes import emoji
from pellucid.train import clip as train_clip
from pellucid.train import diffusion as train_diffusion
from pellucid.train import loop, pack
from pellucid.train import upscaler as train_upscaler
from pellucid.train import vae as train_vae
from pellucid.train.loop import autocast, device_of, load_state
from references import thin_recipe

RECIPE = thin_recipe(emoji.RECIPE)


def state_at(path: Path) -> dict[str, Any]:
    found = load_state(path)
    assert found is not None
    return found


def train_all(out: Path, **source: Any) -> None:
    """Three steps of each loop, at the size of the pictures."""
    train_clip.train(
        train_clip.CLIPOptions(
            out=out / "clip", steps=3, batch=4, vocabulary=300, captions=50, device="cpu", **source
        ),
        RECIPE,
    )
    vae = train_vae.VAEOptions(out=out / "vae", steps=3, batch=2, device="cpu", **source)
    train_vae.train(vae, RECIPE)
    train_diffusion.train(diffusion_options(out, **source), RECIPE)


def diffusion_options(out: Path, **source: Any) -> train_diffusion.DiffusionOptions:
    return train_diffusion.DiffusionOptions(
        vae=out / "vae" / "vae.pt",
        clip=out / "clip" / "state.pt",
        out=out / "diffusion",
        steps=3,
        batch=2,
        pool=6,
        core=False,
        channels="32,64,64",
        sample_every=2,
        device="cpu",
        **source,
    )


def save_art(folder: Path, size: int) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 8, 8, 4), dtype=np.uint8)
    names = ("frog", "owl", "star", "heart", "boat")
    pixels = pixels.repeat(size // 8, 2).repeat(size // 8, 3)
    EmojiArt([Concept("x", (n,)) for n in names], pixels).save(folder / "art.npz")
    return folder / "art.npz"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All parts, trained on 128x128 art with three levels in the U-Net."""
    out = tmp_path_factory.mktemp("large")
    train_all(out, art=save_art(out, 128))
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Art of 32x32 and a CLIP."""
    out = tmp_path_factory.mktemp("small")
    train_clip.train(
        train_clip.CLIPOptions(
            save_art(out, 32),
            out / "clip",
            steps=2,
            batch=4,
            vocabulary=300,
            captions=50,
            device="cpu",
        ),
        RECIPE,
    )
    return out


def test_pictures_of_128_pixels_and_a_wider_network(large: Path) -> None:
    state = state_at(large / "diffusion" / "state.pt")
    assert state["config"]["block_out_channels"] == (32, 64, 64)
    assert state["config"]["map_size"] == 16
    assert state["model"]["map_embedding.2.weight"].shape[0] == 32 * 16 * 16


def test_pack_takes_size_and_network_from_what_was_trained(large: Path) -> None:
    model = checkpoints.load(
        pack.train(
            pack.PackOptions(
                vae=large / "vae" / "vae.pt",
                clip=large / "clip" / "state.pt",
                diffusion=large / "diffusion" / "state.pt",
                out=large / "model.safetensors",
            ),
            RECIPE,
        )
    )
    assert (model.defaults.width, model.defaults.height) == (128, 128)
    averaged = state_at(large / "diffusion" / "state.pt")["ema"]["conv_out.bias"]
    assert torch.equal(
        model.backbone.state_dict()["conv_out.bias"].float(), averaged.half().float()
    )


def test_pack_with_an_upscaler_and_the_words_of_the_art(large: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = large / "pairs"
    pairs.mkdir()
    np.save(pairs / "small.npy", rng.integers(0, 255, (2, 8, 8, 3), dtype=np.uint8))
    np.save(pairs / "large.npy", rng.integers(0, 255, (2, 16, 16, 3), dtype=np.uint8))
    config = SuperResolutionConfig(factor=2, block_out_channels=(8,), embedding=4)
    stage = train_upscaler.train(
        train_upscaler.UpscalerOptions(
            pairs=str(pairs), out=large / "upscaler", steps=1, batch=2, crop=8, device="cpu"
        ),
        dataclasses.replace(RECIPE, upscaler=config),
    )
    table = large / "packages" / EMOJIBASE
    table.parent.mkdir(parents=True)
    table.write_text(json.dumps([{"emoji": "x", "tags": ["owl", "bird"]}]), encoding="utf-8")
    options = pack.PackOptions(
        vae=large / "vae" / "vae.pt",
        clip=large / "clip" / "state.pt",
        diffusion=large / "diffusion" / "state.pt",
        upscaler=str(stage),
        art=str(large / "art.npz"),
        packages=str(large / "packages"),
        out=large / "cascade.safetensors",
    )
    model = checkpoints.load(pack.train(options, RECIPE))
    assert model.second_stage is not None and model.second_stage.config == config
    assert (model.defaults.width, model.defaults.height) == (256, 256)
    assert model.lexicon is not None
    assert [entry.names for entry in model.lexicon.entries][:2] == [("frog",), ("owl",)]
    assert [entry.tags for entry in model.lexicon.entries][:2] == [("owl", "bird"), ("bird",)]
    with pytest.raises(ValueError, match="is not a file"):
        pack.train(dataclasses.replace(options, packages=str(large)), RECIPE)


def test_a_sheet_of_samples_now_and_then_and_at_the_end(large: Path) -> None:
    folder = large / "diffusion" / "samples"
    assert sorted(p.name for p in folder.iterdir()) == ["000002.png", "000003.png"]
    with Image.open(folder / "000003.png") as sheet:
        assert sheet.width >= 4 * 128 and sheet.height >= 2 * 128  # five prompts, four in a row


def test_samples_do_not_disturb_the_training(large: Path, tmp_path: Path) -> None:
    options = diffusion_options(large, art=large / "art.npz")
    train_diffusion.train(dataclasses.replace(options, out=tmp_path, sample_every=0), RECIPE)
    assert not (tmp_path / "samples").exists()
    with_them, without = (state_at(p / "state.pt") for p in (large / "diffusion", tmp_path))
    assert all(torch.equal(v, without["model"][k]) for k, v in with_them["model"].items())
    assert all(torch.equal(v, without["ema"][k]) for k, v in with_them["ema"].items())


@pytest.mark.parametrize("channels", ["96", "96,a", "96,100", "0,32", ""])
def test_channels_that_make_no_network(channels: str, tmp_path: Path) -> None:
    options = train_diffusion.DiffusionOptions(out=tmp_path, channels=channels, device="cpu")
    with pytest.raises(ValueError, match="channels must be"):
        train_diffusion.train(options, RECIPE)


# ---------------------------------------------------------------- further losses


def vae_run(small: Path, out: Path, **fields: Any) -> dict[str, Any]:
    options = train_vae.VAEOptions(
        small / "art.npz", out, steps=4, batch=2, save_every=2, device="cpu"
    )
    train_vae.train(dataclasses.replace(options, **fields), RECIPE)
    return state_at(out / "state.pt")


def test_a_discriminator_and_the_eyes_of_clip(small: Path, tmp_path: Path) -> None:
    plain = vae_run(small, tmp_path / "plain")
    assert "critic" not in plain
    further: dict[str, dict[str, Any]] = {
        "critic": {"adversarial": 0.5, "adversarial_from": 2},
        "eyes": {"perceptual": 0.5, "features": str(small / "clip" / "state.pt")},
    }
    for name, fields in further.items():
        state = vae_run(small, tmp_path / name, **fields)
        weights = [s["model"]["decoder.conv_out.weight"] for s in (plain, state)]
        assert all(w.isfinite().all() for w in weights)
        assert not torch.equal(*weights), name
    late = vae_run(small, tmp_path / "late", adversarial=0.5, adversarial_from=4)
    assert all(torch.equal(v, plain["model"][k]) for k, v in late["model"].items())


def test_a_run_with_a_discriminator_resumes_bit_for_bit(small: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"adversarial": 0.5, "adversarial_from": 1, "steps": 4}
    whole = vae_run(small, tmp_path / "whole", **fields)
    kept = loop.save_state

    def stop_after_the_first(path: Path, state: dict[str, Any]) -> None:
        kept(path, state)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_state", stop_after_the_first)
        with pytest.raises(KeyboardInterrupt):
            vae_run(small, tmp_path / "cut", **fields)
    assert state_at(tmp_path / "cut" / "state.pt")["step"] == 2
    resumed = vae_run(small, tmp_path / "cut", resume=True, **fields)
    for part in ("model", "ema", "critic"):
        assert all(torch.equal(v, resumed[part][k]) for k, v in whole[part].items()), part


def test_a_perceptual_weight_needs_eyes(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="features names no trained CLIP"):
        vae_run(small, tmp_path, perceptual=1.0)


# ---------------------------------------------------------------- a folder of pictures


def test_all_loops_on_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for i, color in enumerate(("red", "green", "blue")):
        (folder / color).mkdir(parents=True)
        for j in range(2):
            Image.new("RGB", (40 + i, 30 + j), color).save(folder / color / f"{j}.png")
    train_all(tmp_path, data=str(folder), size=32)
    pool = state_at(tmp_path / "diffusion" / "pool.pt")
    assert pool["latents"].shape == (12, 32, 4, 4)  # six pictures, each mirrored as well
    assert state_at(tmp_path / "diffusion" / "state.pt")["config"]["map_size"] == 4
    assert (tmp_path / "diffusion" / "samples" / "000003.png").is_file()


def test_a_folder_keeps_some_back_and_mirrors(tmp_path: Path) -> None:
    pixels = np.zeros((40, 16, 16, 3), np.uint8)
    pixels[:, :, :8] = 255  # left half white
    folder = ImageFolder(pixels, [str(i) for i in range(40)])
    held, learnt = folder.split(True), folder.split(False)
    assert held == [0, 20] and sorted(held + learnt) == list(range(40))
    drawn, captions, *_ = folder.draw(50, np.random.default_rng(0))
    assert not {"0", "20"} & set(captions)
    white_left = drawn[:, 0, 0, 0] > 0
    assert 0 < int(white_left.sum()) < 50
    assert torch.equal(drawn[:, 0, 0, -1] > 0, ~white_left)


def test_sizes_that_fit_no_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"size must be a multiple of 16, .*, got 50"):
        load_source(SourceOptions(data=str(tmp_path), size=50), multiple=16)


NEW_SOURCE = """
import numpy as np
from pellucid.data import Pictures

def source(options, mix):
    shape = (12, options.size, options.size, 3)
    pixels = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    return Pictures(pixels, [f"noise {i} of {options.data}" for i in range(12)], mirror=False)
"""


def test_a_source_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found by its name, all loops learn from it, and each picture is seen as it is."""
    monkeypatch.setattr(data, "__path__", [*data.__path__, str(tmp_path / "new")])
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "static.py").write_text(NEW_SOURCE)
    monkeypatch.setattr(data, "SOURCES", discover("pellucid.data"))
    assert "static" in data.SOURCES
    train_all(tmp_path, source="static", data="x", size=32)
    pool = state_at(tmp_path / "diffusion" / "pool.pt")
    assert pool["latents"].shape == (12, 32, 4, 4) and not pool["columns"].any()
    tokenizer = state_at(tmp_path / "clip" / "state.pt")["tokenizer"]
    assert "noise" in tokenizer
    with pytest.raises(ValueError, match=r"unknown source 'statik'.*nearest first: static"):
        load_source(SourceOptions(source="statik"))


def test_handwritten_digits_are_a_source(tmp_path: Path) -> None:
    (tmp_path / "src" / "digits").mkdir(parents=True)
    for digit in range(10):
        ink = np.zeros((3, 28, 28))
        ink[:, 14:, : 2 * digit + 2] = 1
        text = json.dumps({"data": ink.flatten().tolist()})
        (tmp_path / "src" / "digits" / f"{digit}.json").write_text(text)
    digits = load_source(SourceOptions(source="mnist", data=str(tmp_path), size=32), multiple=16)
    assert digits.size == 32 and len(digits.classes) == 10
    pixels, captions, labels, _ = digits.draw(40, np.random.default_rng(0))
    assert pixels.shape == (40, 3, 32, 32) and pixels.min() == -1 and pixels.max() == 1
    for one, caption, label in zip(pixels, captions, labels.tolist(), strict=True):
        assert caption == digits.classes[label]
        digit = mnist.NAMES.index(caption.removeprefix("a handwritten "))
        width = int((one[0, 24] > 0).sum())  # not mirrored, so the ink begins at the left
        assert abs(width - 32 / 28 * (2 * digit + 2)) <= 1 and one[0, 24, 0] > 0


# ---------------------------------------------------------------- devices


def test_device_of() -> None:
    assert device_of("cpu").type == "cpu"
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "meta", ""])
def test_a_device_that_is_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"device must be one of auto, cpu"):
        device_of(name)
    loops: list[tuple[Any, Any]] = [
        (train_vae, train_vae.VAEOptions(out=tmp_path, device=name)),
        (train_clip, train_clip.CLIPOptions(out=tmp_path, device=name)),
        (train_diffusion, train_diffusion.DiffusionOptions(out=tmp_path, device=name)),
        (classifier, classifier.ClassifierOptions(out=tmp_path, device=name)),
    ]
    for module, options in loops:
        with pytest.raises(ValueError, match="device must be one of auto, "):
            module.train(*([options] if module is classifier else [options, RECIPE]))


@pytest.mark.parametrize(
    ("able", "dtype"),
    [
        ({}, torch.float32),
        ({"avx512_f": True}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
    ],
)
def test_half_precision_on_a_cpu_that_has_it(
    able: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    with autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_yes_and_no_on_the_command_line() -> None:
    kind = train_diffusion.DiffusionOptions
    assert _options(kind, ["core=False"], False).core is False
    assert _options(kind, ["core=true"], False).core is True
    with pytest.raises(ValueError, match="core must be true or false"):
        _options(kind, ["core=maybe"], False)
