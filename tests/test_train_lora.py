"""Training a LoRA: it learns, it can be gone on with, and what it writes is a LoRA like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from pellucid.checkpoints import (
    CheckpointError,
    describe_lora,
    load_lora,
    save,
    save_lora,
    tokenizer_files,
)
from pellucid.lora import Change, Lora, Matrix, attach
from pellucid.model import Model
from pellucid.tokenizer import Tokenizer
from pellucid.train import loop
from pellucid.train import lora as train_lora
from pellucid.train.lora import LoraOptions, make_pool, new_lora, validation_loss
from references import model_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures with captions."""
    folder = tmp_path_factory.mktemp("data")
    for i, name in enumerate(("red", "green", "blue")):
        pixels = np.zeros((20, 16, 3), np.uint8)
        pixels[..., i] = 200
        pixels[4:9, 2:6] = 255
        Image.fromarray(pixels).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a ({name}: apple)")
    return folder


@pytest.fixture(scope="module")
def options(data: Path, model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> LoraOptions:
    out = tmp_path_factory.mktemp("out") / "apple.safetensors"
    return LoraOptions(str(data), str(model_file), out=out, rank=2, steps=12, batch=2, save_every=5)


@pytest.fixture(scope="module")
def trained(options: LoraOptions) -> Path:
    return train_lora.train(options)


def test_what_is_written_is_a_lora(trained: Path, model: Model) -> None:
    lora = load_lora(trained, model)
    assert lora.unmatched == () and lora.changes.keys() == {"backbone"}
    names = set(lora.changes["backbone"])
    assert "mid_block.attentions.0.proj_in.weight" in names
    assert all(".attentions." in name for name in names)
    for change in lora.changes["backbone"].values():
        assert change.scale == 1 and change.rank == 2
        assert float(change.matrices[0].a.abs().max()) > 0  # it began at zero
    facts = describe_lora(trained)
    assert facts["ranks"] == [2] and facts["commonest tags"][0].startswith("a (")
    assert facts["ss_output_name"] == "apple" and facts["ss_sd_model_name"] == "tiny"


def test_the_loss_falls(model: Model, data: Path, tmp_path: Path, model_file: Path) -> None:
    options = LoraOptions(
        str(data),
        str(model_file),
        out=tmp_path / "x.safetensors",
        rank=4,
        convs=True,
        steps=24,
        rate=1e-2,
    )
    lora = load_lora(train_lora.train(options), model)
    assert "conv_in.weight" in lora.changes["backbone"]
    pool = make_pool(model, train_lora.ImageFolder.load(data, 16), mirror=False)
    before, after = (
        validation_loss(model, attach(model, [(lora, weight, 0.0)]).backbone, pool, [0, 1, 2])
        for weight in (0.0, 1.0)
    )
    assert after < 0.95 * before


def test_a_run_that_was_stopped_goes_on(
    options: LoraOptions, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "apple.safetensors"
    half = replace(options, steps=12, out=out)

    class Stopped(Exception):
        pass

    saved: list[int] = []

    def stop(path: Path, state: dict[str, object]) -> None:
        save_state(path, state)
        saved.append(int(str(state["step"])))
        raise Stopped

    save_state = loop.save_state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_state", stop)
        with pytest.raises(Stopped):
            train_lora.train(half)
    assert saved == [5] and not out.exists()
    train_lora.train(replace(half, resume=True))
    whole, again = load_file(trained), load_file(out)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    with pytest.raises(ValueError, match="is from a run with other options"):
        train_lora.train(replace(half, resume=True, rank=3))


def test_sdxl_learns_too(data: Path, tmp_path: Path) -> None:
    """Two text towers, the size of the picture, and kohya's other names."""
    tokenizer = Tokenizer.train(["a red apple"], 270, context_length=77)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_files, "clip_tokenizer", lambda: tokenizer)
        model = model_of("sdxl", vocabulary=49408)  # it pads with the last number
    save(model, tmp_path / "xl.safetensors")
    out = tmp_path / "apple.safetensors"
    options = LoraOptions(str(data), str(tmp_path / "xl.safetensors"), out=out)
    train_lora.train(replace(options, size=64, rank=1, steps=2, batch=1))
    assert "lora_unet_middle_block_1_proj_in.alpha" in load_file(out)
    lora = load_lora(out, model)
    assert lora.unmatched == () and len(lora.changes["backbone"]) == len(load_file(out)) / 3


def test_a_new_lora_changes_nothing(model: Model) -> None:
    changes = new_lora(model.backbone, 3, True, 0)
    for name, change in changes.items():
        weight = model.backbone.get_parameter(name)
        assert torch.equal(change.of(weight), torch.zeros_like(weight))
        change.check(weight.shape)


def test_captions_are_no_prompts(model: Model, data: Path) -> None:
    """Brackets in a caption give no weight; every caption belongs to its picture."""
    pool = make_pool(model, train_lora.ImageFolder.load(data, 16), mirror=True)
    assert len(pool.latents) == 6 and len(pool.text) == 4

    def tokens(text: str) -> Tensor:
        return model.text(model.tokenizer([text])).hidden

    index, dropped = torch.tensor([1, 4, 2]), torch.tensor([False, False, True])
    latents, cond = pool.batch(index, dropped)
    assert torch.equal(latents, pool.latents[index])
    captions = ("a (green: apple)", "a (green: apple)", "")
    wanted = torch.cat([tokens(c) for c in captions])
    assert torch.allclose(cond.tokens[:, : wanted.shape[1]], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ""}, "data must be a folder of pictures with captions"),
        ({"data": "/nowhere"}, "there is no such folder"),
        ({"rank": 0}, "rank must be between 1 and 1024, got 0"),
        ({"out": Path("apple.pt")}, r"out must be a file that ends in .safetensors, got apple.pt"),
        ({"out": Path("/tmp")}, "out must be a file that ends in .safetensors, got /tmp"),
        ({"size": 17}, "size must be a multiple of .*, got 17"),
        ({"model": "/nowhere.safetensors"}, "does not exist"),
    ],
)
def test_options_that_make_no_sense(
    change: dict[str, object], message: str, options: LoraOptions
) -> None:
    with pytest.raises(ValueError, match=message):
        train_lora.train(replace(options, **change))  # type: ignore[arg-type]


def test_other_kinds_are_not_written(model: Model, tmp_path: Path) -> None:
    name = "conv_in.weight"
    for change in (
        Change("full", (Matrix(torch.zeros(8, 4, 3, 3)),)),
        Change("LoRA", (Matrix(torch.ones(8, 1), torch.ones(1, 36)),), magnitude=torch.ones(8)),
    ):
        with pytest.raises(CheckpointError, match=r"conv_in.weight is not changed by a plain LoRA"):
            save_lora(Lora("x", {"backbone": {name: change}}), model, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
