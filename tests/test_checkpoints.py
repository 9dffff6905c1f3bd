"""Native checkpoints: what is written is read back, and every broken file gets its sentence."""

from __future__ import annotations

import dataclasses
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pellucid import checkpoints
from pellucid.backbones.unet import UNet, UNetConfig
from pellucid.cascade import SuperResolution, SuperResolutionConfig
from pellucid.checkpoints import CheckpointError, load, save
from pellucid.checkpoints.weights import open_weights
from pellucid.clip import TextConfig, TextTower, VisionConfig, VisionTower
from pellucid.diffusion import Conditioning
from pellucid.lexicon import Entry, Lexicon
from pellucid.model import Defaults, Model
from pellucid.schedule import Schedule
from pellucid.tokenizer import Tokenizer
from pellucid.vae import VAE, VAEConfig


def tiny(vision: bool = True) -> Model:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a red apple", "a rabbit"], 270, context_length=8)
    unet = UNetConfig(
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        transformer_layers=(0, 1),
        mid_transformer_layers=1,
        heads=(2, 2),
        cross_attention_dim=16,
        norm_groups=4,
        pooled_dim=12,
    )
    text = TextConfig(tokenizer.vocab_size, 8, 16, 1, 2, 16, projection=12, eos=tokenizer.eos)
    return Model(
        backbone=UNet(unet),
        vae=VAE(VAEConfig(block_out_channels=(8, 8), layers_per_block=1, norm_groups=4)),
        text=TextTower(text),
        tokenizer=tokenizer,
        schedule=Schedule(name="cosine", T=500, zero_terminal_snr=True),
        prediction="v",
        name="tiny",
        vision=VisionTower(VisionConfig(16, 8, 16, 1, 2, 16, projection=12)) if vision else None,
        defaults=Defaults(steps=7, guidance=2.5, width=32, height=48),
    )


def run(model: Model) -> torch.Tensor:
    """A number from every part."""
    generator = torch.Generator().manual_seed(1)
    read = model.text(model.tokenizer(["a red rabbit"]))
    cond = Conditioning(tokens=read.hidden, pooled=read.projected)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    with torch.no_grad():
        outputs = [
            model.backbone(x, torch.tensor([10.0]), cond),
            model.vae.to_pixels(x),
            model.vae.encode(torch.rand(1, 3, 16, 16, generator=generator)).mode(),
        ]
        if model.vision is not None:
            outputs.append(model.vision(torch.rand(1, 3, 16, 16, generator=generator)))
    return torch.cat([output.flatten() for output in outputs])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    save(tiny(), path)
    return path


def rewrite(
    written: Path,
    path: Path,
    weights: Callable[[dict[str, torch.Tensor]], object] = lambda weights: None,
    facts: Callable[[dict[str, Any]], object] = lambda facts: None,
) -> Path:
    """A copy of `written` at `path`, with something changed."""
    tensors = load_file(written)
    with safe_open(written, framework="pt") as file:
        metadata = json.loads(file.metadata()["pellucid"])
    weights(tensors)
    facts(metadata)
    save_file(tensors, path, {"pellucid": json.dumps(metadata)})
    return path


@pytest.mark.parametrize("vision", [True, False])
def test_round_trip(tmp_path: Path, vision: bool) -> None:
    model = tiny(vision)
    path = tmp_path / "model.safetensors"
    save(model, str(path))
    again = load(str(path))
    # Not to the last bit: kernels add in another order when the file's memory is aligned otherwise.
    torch.testing.assert_close(run(again), run(model), rtol=0, atol=1e-5)
    assert again.schedule == model.schedule and again.defaults == model.defaults
    assert (again.prediction, again.name) == ("v", "tiny")
    assert again.tokenizer.to_json() == model.tokenizer.to_json()
    assert (again.vision is not None) == vision
    for part in ("backbone", "vae", "text"):
        mine, other = getattr(model, part), getattr(again, part)
        assert other.config == mine.config and type(other) is type(mine)
        torch.testing.assert_close(other.state_dict(), mine.state_dict(), rtol=0, atol=0)
        assert not other.training
        assert all(parameter.requires_grad for parameter in other.parameters())
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def cascaded() -> Model:
    """With a second stage and a list of words."""
    stage = SuperResolution(SuperResolutionConfig(factor=2, block_out_channels=(8, 8), embedding=4))
    words = Lexicon((Entry("🐸", ("frog", "toad"), ("amphibian",)),), ("red",))
    return dataclasses.replace(tiny(), second_stage=stage, lexicon=words)


def test_the_second_stage_and_the_words_are_in_the_file(tmp_path: Path) -> None:
    model, path = cascaded(), tmp_path / "model.safetensors"
    assert save(model, path) == ()
    again = load(path)
    assert model.second_stage is not None and again.second_stage is not None
    assert again.second_stage.config == model.second_stage.config
    torch.testing.assert_close(
        again.second_stage.state_dict(), model.second_stage.state_dict(), rtol=0, atol=0
    )
    assert again.lexicon == model.lexicon
    facts = checkpoints.describe(path)
    assert facts["upscaler"] == "makes width and height 2 times as large"
    assert (facts["things it draws"], facts["other words"]) == (["frog"], ["red"])
    assert "upscaler" in facts["parameters"]


def test_a_list_of_words_that_is_none_is_refused(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    rewrite(written, path, facts=lambda facts: facts.update(lexicon={"words": []}))
    with pytest.raises(CheckpointError, match="not the words of a model"):
        load(path)


def test_half_the_size_as_float16(tmp_path: Path, written: Path) -> None:
    path = tmp_path / "half.safetensors"
    model = tiny()
    save(model, path, dtype=torch.float16)
    assert all(tensor.dtype == torch.float16 for tensor in load_file(path).values())
    weights = sum(tensor.numel() for tensor in load_file(written).values())
    assert written.stat().st_size - path.stat().st_size == pytest.approx(2 * weights, rel=0.05)
    again = load(path)
    assert next(again.backbone.parameters()).dtype == torch.float32
    torch.testing.assert_close(run(again), run(model), rtol=0, atol=0.05)
    assert next(model.backbone.parameters()).dtype == torch.float32  # saving changes nothing


def test_load_as_another_dtype(written: Path) -> None:
    model = load(written, dtype=torch.bfloat16)
    for part in (model.backbone, model.vae, model.text, model.vision):
        assert part is not None
        assert all(parameter.dtype == torch.bfloat16 for parameter in part.parameters())


def test_the_file_says_what_it_is(written: Path) -> None:
    with safe_open(written, framework="pt") as file:
        metadata = file.metadata()
    assert {key.split(".")[0] for key in load_file(written)} == {
        "backbone",
        "vae",
        "text",
        "vision",
    }
    facts = json.loads(metadata["pellucid"])
    assert {part: entry["kind"] for part, entry in facts["parts"].items()} == {
        "backbone": "unet",
        "vae": "vae",
        "text": "clip_text",
        "vision": "clip_vision",
    }
    assert facts["parts"]["backbone"]["config"]["block_out_channels"] == [8, 16]


def test_none_is_the_embedded_model(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkpoints.embedded().parts[-3:] == ("pellucid", "weights", "emoji.safetensors")
    monkeypatch.setattr("pellucid.checkpoints.models.embedded", lambda: written)
    assert load().name == "tiny"


def test_a_model_that_trains_on_can_be_saved_over_itself(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(tiny(), path)
    model = load(path)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.01)
    expected = {key: weight.clone() for key, weight in model.backbone.state_dict().items()}
    save(model, path)
    for state in (model.backbone.state_dict(), load(path).backbone.state_dict()):
        torch.testing.assert_close(state, expected, rtol=0, atol=0)


# What is wrong with a file, and what the sentence must say.


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors does not exist"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        load(tmp_path)


@pytest.mark.parametrize("part", [0.0, 0.0001, 0.01, 0.5, 0.9999])
def test_truncated(tmp_path: Path, written: Path, part: float) -> None:
    path = tmp_path / "cut.safetensors"
    whole = written.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(CheckpointError, match="truncated"):
        load(path)


def test_longer_than_it_says(tmp_path: Path, written: Path) -> None:
    path = tmp_path / "long.safetensors"
    path.write_bytes(written.read_bytes() + b"more")
    with pytest.raises(CheckpointError, match="4 bytes follow"):
        load(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_the_wrong_name(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="is a pickle"):
        load(path)


def with_header(text: bytes, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"a text about rabbits",
        with_header(b"{not json}"),
        with_header(b"{\xff}"),
        with_header(b'{"a": 3}'),
        with_header(b'{"a": {"dtype": "F32"}}'),
        with_header(b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 0]}}'),
        with_header(b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": []}}'),
        with_header(b'{"__metadata__": 3}'),
    ],
)
def test_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("<!DOCTYPE html>\n<html><body>Log in" + 999 * " ", "is a web page, as a failed download"),
        ("\n  <HTML><title>404</title>", "is a web page, as a failed download"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:6ce0", "`git lfs pull` fetches"),
        (
            '{"error": "not found"}',
            """not a safetensors file: '{"error": "not found"}'""",
        ),
        (
            "Invalid username\n or password. " + 99 * "é",
            "a text file and not a safetensors file: 'Invalid username or password.",
        ),
        ("GGUF\3\0\0\0\0\0\0\0", "is a GGUF file, a format that is not supported"),
    ],
)
def test_what_is_there_instead(content: str, said: str, tmp_path: Path, refused: Any) -> None:
    """The usual ends of a download that failed, wherever weights are read."""
    path = tmp_path / "model.safetensors"
    path.write_text(content)
    for words in (("info", path), ("generate", "a", "--model", path), ("lora", path)):
        assert said in refused(*words)


def test_weights_without_our_metadata(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(3)}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="no 'pellucid' entry in its metadata"):
        load(path)


def test_keys_that_do_not_fit(tmp_path: Path, written: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        for key in sorted(key for key in weights if key.startswith("vae.encoder"))[:5]:
            del weights[key]
        weights["text.more"] = torch.zeros(1)
        weights["backbone.conv_in.bias"] = torch.zeros(9)

    path = rewrite(written, tmp_path / "model.safetensors", weights=change)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert "5 missing: vae.encoder." in message and ", ..." in message
    assert message.count("vae.encoder.") == 3
    assert "1 unknown: text.more" in message
    assert "1 of the wrong shape: backbone.conv_in.bias is (9,) and not (8,)" in message


def set_version(facts: dict[str, Any]) -> None:
    facts["version"] = 99


def set_kind(facts: dict[str, Any]) -> None:
    facts["parts"]["backbone"]["kind"] = "hourglass"


def drop_part(facts: dict[str, Any]) -> None:
    del facts["parts"]["vae"]


def add_part(facts: dict[str, Any]) -> None:
    facts["parts"]["nose"] = facts["parts"]["vae"]


def drop_fact(facts: dict[str, Any]) -> None:
    del facts["schedule"]


def add_option(facts: dict[str, Any]) -> None:
    facts["parts"]["vae"]["config"]["colour"] = "blue"


def break_config(facts: dict[str, Any]) -> None:
    facts["parts"]["text"]["config"]["heads"] = 3


def break_type(facts: dict[str, Any]) -> None:
    facts["parts"]["text"]["config"]["width"] = "wide"


def break_schedule(facts: dict[str, Any]) -> None:
    facts["schedule"] = [1]


def break_tokenizer(facts: dict[str, Any]) -> None:
    facts["tokenizer"] = {}


def grow_tokenizer(facts: dict[str, Any]) -> None:
    facts["tokenizer"]["context_length"] = 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_version, "format version 99; this Pellucid reads up to 1"),
        (set_kind, "backbone is of the kind 'hourglass'; known are .*unet"),
        (drop_part, "has no vae"),
        (add_part, "a part 'nose'"),
        (drop_fact, "has no schedule"),
        (add_option, "unknown field 'colour'; known are block_out_channels"),
        (break_config, "no TextTower can be built .* heads 3"),
        (break_type, "no TextTower can be built"),
        (break_schedule, "schedule in its metadata is not a JSON object"),
        (break_tokenizer, "tokenizer's JSON cannot be read"),
        (grow_tokenizer, r"tokenizer \(\d+ pieces, rows of 9\) does not fit its text tower"),
    ],
)
def test_metadata_that_is_wrong(
    tmp_path: Path, written: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = rewrite(written, tmp_path / "model.safetensors", facts=change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["{", "3", "{}"])
def test_metadata_that_is_no_object(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(3)}, path, {"pellucid": text})
    with pytest.raises(CheckpointError, match="metadata"):
        load(path)


# What goes wrong while writing.


def test_a_failed_write_leaves_nothing_and_keeps_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"the old one")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(tiny(), path)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_stopping_a_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", stopped)
    with pytest.raises(KeyboardInterrupt):
        save(tiny(), tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    model = tiny()
    with pytest.raises(CheckpointError, match="is not a folder"):
        save(model, tmp_path / "none" / "model.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="could not be written"):
        save(model, tmp_path / "folder")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model.vae.encoder.conv_in.bias[0] = 1e6
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"vae\.encoder\.conv_in\.bias .* torch\.float16"):
        save(model, path, dtype=torch.float16)
    assert not path.exists()
    save(model, path)


def test_a_part_that_no_file_can_name(tmp_path: Path) -> None:
    model = dataclasses.replace(tiny(), backbone=torch.nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match="backbone is a Linear"):
        save(model, tmp_path / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_half_is_cast_as_torch_does(dtype: torch.dtype, tmp_path: Path) -> None:
    """In pieces, and for bfloat16 by way of float32."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    save_file({"x": every.repeat(3)[:-7].clone()}, tmp_path / "halves.safetensors")
    found = open_weights(tmp_path / "halves.safetensors")["x"].get(dtype)
    expected = every.repeat(3)[:-7].to(dtype)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))
