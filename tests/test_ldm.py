"""The original layout: what is written here, diffusers' converters read, and the other way round."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import types
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from safetensors.torch import save as serialize
from torch import Tensor, nn

from pellucid import checkpoints
from pellucid.backbones.unet import SD15, SD21, SDXL, UNet, UNetConfig
from pellucid.checkpoints import CheckpointError, key_names, load, tokenizer_files
from pellucid.checkpoints import shapes as shape_configs
from pellucid.checkpoints import weights as weights_module
from pellucid.checkpoints.families import sd2
from pellucid.checkpoints.formats import ldm
from pellucid.clip import SD1_TEXT, SD2_TEXT, SDXL_TEXT, TextConfig, TextTower
from pellucid.diffusion import Conditioning
from pellucid.model import Model
from pellucid.schedule import Schedule
from pellucid.tokenizer import Tokenizer
from pellucid.vae import VAE
from references import (
    FAMILIES,
    NAMES,
    TEXT_H,
    UNETS,
    assert_same,
    close,
    model_of,
    noise,
    parts_of,
    their_text,
    their_unet,
    their_vae,
)

REFINER_UNET = FAMILIES["sdxl_refiner"].backbone


@pytest.fixture(autouse=True, scope="module")
def small_vocabulary() -> Any:
    """CLIP's vocabulary is looked at elsewhere."""
    tokenizer = Tokenizer.train(["a red apple"], 270, context_length=77)
    patch = pytest.MonkeyPatch()
    patch.setattr(tokenizer_files, "clip_tokenizer", lambda: tokenizer)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {name: model_of(name) for name in NAMES}


@pytest.fixture(scope="module")
def files(models: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ldm")
    for name, model in models.items():
        ldm.write(model, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in models}


def rewrite(
    source: Path,
    path: Path,
    change: Callable[[dict[str, Tensor]], object] = lambda weights: None,
    metadata: dict[str, str] | None = None,
) -> Path:
    weights = load_file(source)
    change(weights)
    save_file(weights, path, metadata)
    return path


# ---------------------------------------------------------------- against diffusers


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_diffusers_reads_what_is_written(name: str, files: dict[str, Path]) -> None:
    """Their converters have their own tables; names and numbers, and what comes out, are equal."""
    single = pytest.importorskip("diffusers.loaders.single_file_utils")
    stored, ours = load_file(files[name]), load(files[name], prediction="eps")
    assert isinstance(ours.backbone, UNet)
    config = ours.backbone.config

    theirs = their_unet(config)
    got = single.convert_ldm_unet_checkpoint(dict(stored), dict(theirs.config))
    expected = ours.backbone.state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)
    theirs.load_state_dict(got, strict=True)
    sized = config.size_conditions
    pooled = noise(2, config.pooled_dim, seed=2) if sized else None
    sizes = 100 * torch.rand(2, config.size_count) if sized else None
    x, t = noise(2, 4, 16, 16), torch.tensor([3.0, 700.0])
    tokens = noise(2, 7, config.cross_attention_dim, seed=1)
    extra = {"text_embeds": pooled, "time_ids": sizes} if sized else None
    said = theirs(x, t, tokens, added_cond_kwargs=extra).sample
    close(ours.backbone(x, t, Conditioning(tokens, pooled, sizes)), said)

    vae = their_vae(ours.vae.config)
    got = single.convert_ldm_vae_checkpoint(dict(stored), dict(vae.config))
    expected = ours.vae.state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)
    vae.load_state_dict(got, strict=True)
    pixels = noise(1, 3, 16, 16)
    close(ours.vae.encode(pixels).mean, vae.encode(pixels).latent_dist.mean)
    close(ours.vae.decode(x[:1]), vae.decode(x[:1]).sample)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_transformers_reads_what_is_written(name: str, files: dict[str, Path]) -> None:
    single = pytest.importorskip("diffusers.loaders.single_file_utils")
    stored, ours = load_file(files[name]), load(files[name], prediction="eps")
    ids = torch.tensor([[7, 320, 125, 99, 99], [7, 5, 99, 0, 0]])
    starts = [tower.prefix for tower in FAMILIES[name].towers]
    for tower, start in zip(filter(None, (ours.text, ours.text_2)), starts, strict=True):
        open_clip = start.endswith(".model.")
        projected = open_clip and name != "sd2"  # of which diffusers leaves the projection out
        theirs = their_text(tower.config, projected)
        if open_clip:
            got = single.convert_open_clip_checkpoint(theirs, dict(stored), prefix=start)
        else:
            got = single.convert_ldm_clip_checkpoint(dict(stored))
        expected = tower.state_dict()
        if name == "sd2":
            del expected["text_projection.weight"]
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[key], expected[key]) for key in expected)
        if not any(key.startswith("text_model.") for key in theirs.state_dict()):
            got = {key.removeprefix("text_model."): value for key, value in got.items()}
        theirs.load_state_dict(got, strict=True)
        said = theirs(ids, output_hidden_states=True)
        tower.config = replace(tower.config, eos=99)
        read = tower(ids, -2, final_norm=False)
        close(read.hidden, said.hidden_states[-2])
        close(tower(ids).hidden, said.last_hidden_state)
        if projected:
            assert read.projected is not None
            close(read.projected, said.text_embeds)


# ---------------------------------------------------------------- reading and writing


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name: str, models: dict[str, Model], files: dict[str, Path]) -> None:
    again = load(files[name])
    assert_same(models[name], again)
    assert again.name == name


def test_what_a_family_is(files: dict[str, Path]) -> None:
    """The published conventions, written down a second time."""
    read = {name: load(path) for name, path in files.items()}
    assert [m.vae.config.scaling_factor for m in read.values()] == [0.18215] * 2 + [0.13025] * 2
    assert [m.text_encoding.layer for m in read.values()] == [-1, -2, -2, -2]
    assert [m.text_encoding.final_norm for m in read.values()] == [True, True, False, False]
    assert [m.text_encoding.pads for m in read.values()] == [(49407,), (0,), (49407, 0), (0,)]
    assert [m.text_encoding.zero_empty for m in read.values()] == [False, False, True, False]
    assert [m.text.config.activation for m in read.values()] == [
        *("quick_gelu", "gelu", "quick_gelu", "gelu")
    ]
    assert [m.defaults.width for m in read.values()] == [512, 512, 1024, 1024]
    for model in read.values():
        assert model.schedule == Schedule("scaled_linear", 1000, 0.00085, 0.012)
        assert model.text.config.eos == 49407


@pytest.mark.parametrize(
    ("family", "unet", "texts", "start"),
    [
        (FAMILIES["sd1"], SD15, (SD1_TEXT,), "sd1"),
        (FAMILIES["sd2"], SD21, (SD2_TEXT,), "sd2"),
        (FAMILIES["sdxl"], SDXL, (SD1_TEXT, SDXL_TEXT), "sdxl"),
        (FAMILIES["sdxl_refiner"], REFINER_UNET, (SDXL_TEXT,), "sdxl_refiner"),
    ],
    ids=NAMES,
)
def test_published_shapes_give_the_published_configs(
    family: Any, unet: UNetConfig, texts: tuple[TextConfig, ...], start: str
) -> None:
    def shapes(network: nn.Module, places: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        stored = network.state_dict()
        return {place.key: place.shape(tuple(stored[k].shape)) for k, place in places.items()}

    with torch.device("meta"):
        networks = UNet(unet), VAE(family.vae), [TextTower(text) for text in texts]
    names = networks[0].state_dict()
    found = shape_configs.unet_config(
        shapes(networks[0], key_names.unet_locations(names, unet)), family.backbone
    )
    assert found == unet
    places = key_names.vae_locations(networks[1].state_dict(), 4)
    assert shape_configs.vae_config(shapes(networks[1], places), family.vae) == family.vae
    for tower, prefix in zip(networks[2], (t.prefix for t in FAMILIES[start].towers), strict=True):
        keys = tower.state_dict()
        if prefix.endswith("transformer."):
            config = shape_configs.clip_config(
                shapes(tower, key_names.clip_locations(keys)), tower.config
            )
        else:
            config = shape_configs.open_clip_config(
                shapes(tower, key_names.open_clip_locations(keys))
            )
        assert config == tower.config


def test_refiner_has_the_published_size() -> None:
    with torch.device("meta"):
        ours, theirs = UNet(REFINER_UNET), their_unet(REFINER_UNET)
    mine = {name: p.shape for name, p in ours.state_dict().items()}
    assert mine == {name: p.shape for name, p in theirs.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "channels", "use"),
    [("sd1", 9, "inpainting"), ("sd1", 8, "pix2pix"), ("sd2", 9, "inpainting")],
)
def test_more_channels(name: str, channels: int, use: str, tmp_path: Path) -> None:
    path = tmp_path / "more.safetensors"
    model = model_of(name, in_channels=channels)
    ldm.write(model, path)
    path = rewrite(path, path)  # without the metadata; SD2's inpainting model predicts noise
    assert_same(model, load(path))
    assert checkpoints.describe(path)["family"] == f"{FAMILIES[name].title} {use}"


def test_channels_of_no_known_use(files: dict[str, Path], tmp_path: Path) -> None:
    def deepen(weights: dict[str, Tensor]) -> None:
        weights["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(32, 5, 3, 3)

    path = rewrite(files["sd1"], tmp_path / "depth.safetensors", deepen)
    with pytest.raises(CheckpointError, match="takes 5 channels; known are 4, 9 inpainting"):
        load(path)


@pytest.mark.parametrize(
    ("dtype", "to"),
    [
        (torch.float16, torch.float16),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float16),
        (torch.float32, torch.bfloat16),
    ],
)
def test_types(
    dtype: torch.dtype,
    to: torch.dtype,
    models: dict[str, Model],
    tmp_path: Path,
) -> None:
    path = tmp_path / "typed.safetensors"
    ldm.write(models["sd1"], path, dtype)
    assert {w.dtype for w in load_file(path).values()} == {dtype}
    again = load(path, dtype=to)
    for name, part in parts_of(models["sd1"]).items():
        expected, got = part.state_dict(), getattr(again, name).state_dict()
        assert all(torch.equal(got[k], expected[k].to(dtype).to(to)) for k in expected)


def test_mixed_types(models: dict[str, Model], files: dict[str, Path], tmp_path: Path) -> None:
    def halve(weights: dict[str, Tensor]) -> None:
        for key in [key for key in weights if key.startswith(key_names.UNET_PREFIX)]:
            weights[key] = weights[key].half()

    path = rewrite(files["sd1"], tmp_path / "mixed.safetensors", halve)
    assert checkpoints.describe(path)["types"].keys() == {"float16", "float32"}
    again = load(path, dtype=torch.bfloat16)
    parameters = [p for part in parts_of(again).values() for p in part.parameters()]
    assert {p.dtype for p in parameters} == {torch.bfloat16}
    weight = models["sd1"].vae.decoder.conv_in.weight
    assert torch.equal(again.vae.decoder.conv_in.weight, weight.bfloat16())


def test_an_sd2_tower_of_diffusers_has_its_last_layer_left_out(tmp_path: Path) -> None:
    model = model_of("sd2")
    text = replace(TEXT_H, projection=None)
    reading = replace(sd2.FAMILY.text_encoding, layer=-1, left_out=1)
    model = replace(model, text=TextTower(text).eval(), text_encoding=reading)
    path = tmp_path / "short.safetensors"
    ldm.write(model, path)
    assert_same(model, load(path, prediction="eps"))
    # Its last layer is the file's last; with the projection it would be the one before.
    wrong = replace(model, text_encoding=sd2.FAMILY.text_encoding)
    with pytest.raises(CheckpointError, match="text encoding: layer -2"):
        ldm.write(wrong, path)
    assert sd2.missing_layers(SD2_TEXT) == 0
    assert sd2.missing_layers(replace(SD2_TEXT, layers=23)) == 1


# ---------------------------------------------------------------- what an SD2 file predicts


def test_sd2_asks_what_it_predicts(files: dict[str, Path], tmp_path: Path) -> None:
    path = rewrite(files["sd2"], tmp_path / "silent.safetensors")
    with pytest.raises(CheckpointError, match=r"prediction must be given, eps .* or v"):
        load(path)
    assert "prediction must be given" in checkpoints.describe(path)["prediction"]
    assert load(path, prediction="eps").defaults.width == 512
    assert load(path, prediction="v").prediction == "v"
    assert load(path, prediction="v").defaults.width == 768
    with pytest.raises(ValueError, match="unknown prediction 'w'"):
        load(path, prediction="w")


@pytest.mark.parametrize(
    ("text", "prediction"),
    [
        ('model:\n  params:\n    parameterization: "v"\n', "v"),
        ("model:\n  params:\n    parameterization: v\n", "v"),
        ("model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n", "eps"),
    ],
)
def test_the_config_beside_it(
    text: str, prediction: str, files: dict[str, Path], tmp_path: Path
) -> None:
    path = rewrite(files["sd2"], tmp_path / "beside.safetensors")
    path.with_suffix(".yaml").write_text(text)
    assert load(path).prediction == prediction


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_v_is_written_so_that_it_is_read(name: str, tmp_path: Path) -> None:
    schedule = replace(FAMILIES[name].schedule, zero_terminal_snr=True)
    model = replace(model_of(name, "v"), schedule=schedule)
    path = tmp_path / "v.safetensors"
    ldm.write(model, path)
    assert_same(model, load(path))
    # The keys of newer merges say it without any metadata.
    bare = rewrite(path, tmp_path / "bare.safetensors")
    assert_same(model, load(bare))
    assert checkpoints.describe(bare)["unused keys"] == []
    assert checkpoints.describe(bare)["prediction"] == "v"


# ---------------------------------------------------------------- how files differ


def nest(weights: dict[str, Tensor]) -> None:
    for key in list(weights):
        weights[f"state_dict.{key}"] = weights.pop(key)


def average(weights: dict[str, Tensor]) -> None:
    """As LitEma names what it keeps."""
    for key in [key for key in weights if key.startswith("model.")]:
        weights["model_ema." + key.removeprefix("model.").replace(".", "")] = weights[key] + 1
    weights["model_ema.decay"] = torch.tensor(0.9999)
    weights["model_ema.num_updates"] = torch.tensor(3, dtype=torch.int32)


def only_average(weights: dict[str, Tensor]) -> None:
    for key in [key for key in weights if key.startswith("model.")]:
        name = "model_ema." + key.removeprefix("model.").replace(".", "")
        weights[name] = weights.pop(key)


def leave_rubbish(weights: dict[str, Tensor]) -> None:
    for key in ("betas", "alphas_cumprod_prev", "sqrt_one_minus_alphas_cumprod", "logvar"):
        weights[key] = torch.zeros(1000)
    for key in ("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "scale_factor"):
        weights[key] = torch.zeros(1000)
    weights["first_stage_model.loss.discriminator.main.0.weight"] = torch.zeros(3)
    name = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    weights[name] = torch.arange(77)[None]


def flatten_text(weights: dict[str, Tensor]) -> None:
    for key in [key for key in weights if "text_model." in key]:
        weights[key.replace("text_model.", "")] = weights.pop(key)


def rename_vae(weights: dict[str, Tensor]) -> None:
    for key in [key for key in weights if key.startswith("first_stage_model.")]:
        weights[key.replace("first_stage_model.", "vae.")] = weights.pop(key)


def squeeze(weights: dict[str, Tensor]) -> None:
    for key in [key for key in weights if "attn_1" in key and weights[key].ndim == 4]:
        weights[key] = weights[key][:, :, 0, 0].contiguous()


@pytest.mark.parametrize(
    ("change", "unused"),
    [
        (nest, 0),
        (average, 688),  # 686 parameters and two numbers of its own
        (only_average, 0),
        (leave_rubbish, 9),
        (flatten_text, 0),
        (rename_vae, 0),
        (squeeze, 0),
    ],
)
def test_files_that_differ(
    change: Callable[[dict[str, Tensor]], None],
    unused: int,
    models: dict[str, Model],
    files: dict[str, Path],
    tmp_path: Path,
) -> None:
    path = rewrite(files["sd1"], tmp_path / "other.safetensors", change)
    assert_same(models["sd1"], load(path))
    told = checkpoints.describe(path)
    assert len(told["unused keys"]) == unused
    assert told["averaged"] == (change is only_average)
    assert told["format"] == "ldm" and told["parameters"].keys() == {"backbone", "vae", "text"}


@pytest.mark.parametrize("name", NAMES)
def test_names_without_dots(name: str) -> None:
    with torch.device("meta"):
        names = UNet(UNETS[name]).state_dict()
    for place in key_names.unet_locations(names, UNETS[name]).values():
        assert key_names.dotted(place.key.replace(".", "")) == place.key
    assert key_names.dotted("decay") is None


def test_names_are_all_different() -> None:
    for name in NAMES:
        with torch.device("meta"):
            names = list(UNet(UNETS[name]).state_dict())
        places = key_names.unet_locations(names, UNETS[name])
        assert list(places) == names and len(set(places.values())) == len(names)


def test_several_files(models: dict[str, Model], files: dict[str, Path], tmp_path: Path) -> None:
    weights = load_file(files["sd1"])
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({key: weights[key] for key in keys}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    places = {key: file for file, keys in shards.items() for key in keys}
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_same(models["sd1"], load(index))
    assert load(index).name == "model"


# ---------------------------------------------------------------- pickles


@pytest.mark.parametrize(
    ("zipped", "name"), [(True, "model.ckpt"), (True, "model.safetensors"), (False, "model")]
)
def test_pickles(
    zipped: bool, name: str, models: dict[str, Model], files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / name
    whole = {"state_dict": load_file(files["sd1"]), "epoch": 3, "global_step": 7}
    torch.save(whole, path, _use_new_zipfile_serialization=zipped)
    assert_same(models["sd1"], load(path))
    half = load(path, dtype=torch.float16)  # in several mappings
    assert torch.equal(half.vae.decoder.conv_in.bias, models["sd1"].vae.decoder.conv_in.bias.half())
    assert checkpoints.describe(path)["format"] == "ldm (pickle)"


class Runs:
    """A pickle of it runs a command when it is opened by the usual means."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_nothing_is_run(zipped: bool, tmp_path: Path) -> None:
    path, touched = tmp_path / "model.ckpt", tmp_path / "touched"
    whole = {"state_dict": {"a": torch.zeros(2)}, "more": Runs(touched)}
    torch.save(whole, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="would run code"):
        load(path)
    assert not touched.exists()
    torch.load(path, weights_only=False)
    assert touched.exists()


def test_what_lightning_leaves_is_passed_over(files: dict[str, Path], tmp_path: Path) -> None:
    """As sd-v1-4.ckpt: a class of Lightning's as a key, numbers of numpy's."""
    lightning = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")

    class ModelCheckpoint:
        pass

    ModelCheckpoint.__module__ = lightning.__name__
    ModelCheckpoint.__qualname__ = "ModelCheckpoint"
    lightning.ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    path = tmp_path / "sd-v1-4.ckpt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
        callbacks = types.ModuleType("pytorch_lightning.callbacks")
        patch.setitem(sys.modules, "pytorch_lightning.callbacks", callbacks)
        patch.setitem(sys.modules, lightning.__name__, lightning)
        score = {"best_model_score": numpy.float64(0.5), "kept": ModelCheckpoint()}
        whole = {"state_dict": load_file(files["sd1"]), "callbacks": {ModelCheckpoint: score}}
        torch.save(whole, path)
    assert load(path).name == "sd-v1-4"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "is a pickle of a Tensor"),
        ([torch.zeros(3)], "is a pickle of a list"),
        ({}, "is a pickle of a dict"),
        ({"a": 3}, "'a' is a int"),
        ({3: torch.zeros(3)}, "'3' is a Tensor"),
        ({"a": torch.zeros(3).to_sparse()}, "'a' is a Tensor"),
        ({"a": torch.zeros(1).expand(10**9)}, "a claims more bytes than the file stores"),
        ({"string_to_param": {"*": torch.zeros(3)}}, "textual-inversion embedding"),
        (
            {"a.lora_up.weight": torch.zeros(3)},
            "is a LoRA, not a model; use it .* as lora",
        ),
        ({"a": torch.zeros(3)}, "is a pickle .* they begin with a"),
    ],
)
def test_pickles_of_something_else(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_a_zip_that_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"not one that torch\.save wrote"):
        load(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**8))
    assert path.stat().st_size < 10**6
    with pytest.raises(CheckpointError, match="is compressed"):
        load(path)


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02", b"\x80\x04"])
def test_rubbish_behind_a_good_start(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    for length in (0, 10, 1000):
        path.write_bytes(start + noise(length, seed=length).numpy().tobytes())
        with pytest.raises(CheckpointError):
            load(path)
    path.write_bytes(start + pickle.dumps({"a": 1})[2:])
    with pytest.raises(CheckpointError):
        load(path)


def test_truncated_pickles(files: dict[str, Path], tmp_path: Path) -> None:
    whole = io.BytesIO()
    torch.save(load_file(files["sd1"]), whole)
    path = tmp_path / "cut.ckpt"
    for part in (0.001, 0.5, 0.999):
        path.write_bytes(whole.getvalue()[: int(part * len(whole.getvalue()))])
        with pytest.raises(CheckpointError, match=r"truncated|damaged"):
            load(path)


# ---------------------------------------------------------------- what is wrong with a file


@pytest.mark.parametrize("part", [0.0001, 0.3, 0.9999])
def test_truncated(part: float, files: dict[str, Path], tmp_path: Path) -> None:
    whole = files["sdxl"].read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(CheckpointError, match="truncated"):
        load(path)


def without(start: str) -> Callable[[dict[str, Tensor]], None]:
    def change(weights: dict[str, Tensor]) -> None:
        for key in [key for key in weights if key.startswith(start)]:
            del weights[key]

    return change


def widen_context(weights: dict[str, Tensor]) -> None:
    for key in [key for key in weights if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]:
        weights[key] = torch.zeros(len(weights[key]), 77)


def change_type(weights: dict[str, Tensor]) -> None:
    key = "model.diffusion_model.out.2.bias"
    weights[key] = weights[key].to(torch.int64)


def add_key(weights: dict[str, Tensor]) -> None:
    weights["model.diffusion_model.more.weight"] = torch.zeros(3)
    weights["more"] = torch.zeros(3)


def reshape_key(weights: dict[str, Tensor]) -> None:
    weights["model.diffusion_model.out.0.bias"] = torch.zeros(31)


def reshape_to(key: str, *shape: int) -> Callable[[dict[str, Tensor]], None]:
    def change(weights: dict[str, Tensor]) -> None:
        assert key in weights
        weights[key] = torch.zeros(shape)

    return change


def deepen_vae(weights: dict[str, Tensor]) -> None:
    weights["first_stage_model.decoder.conv_in.weight"] = torch.zeros(64, 16, 3, 3)


def add_edm(weights: dict[str, Tensor]) -> None:
    weights["edm_mean"] = torch.zeros(4)


def thin_out(weights: dict[str, Tensor]) -> None:
    without("model.diffusion_model.input_blocks.1.1.transformer_blocks.0")(weights)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sd1", without("first_stage_model."), "Stable Diffusion 1 without its autoencoder"),
        ("sd1", without("cond_stage_model."), "without its text encoder"),
        ("sdxl", without("conditioner.embedders.1."), "XL without its text encoder .*embedders.1"),
        ("sdxl", without("conditioner.embedders.0."), "XL without its text encoder .*embedders.0"),
        ("sd1", without("model.diffusion_model."), "is a VAE alone, not a model"),
        ("sd1", without("model.diffusion_model.out.0"), "2 missing: .*out.0"),
        ("sd1", without("model.diffusion_model.out.2.weight"), "with keys missing: out.2.weight"),
        ("sd1", without("model.diffusion_model.output_blocks.11."), "has no output_blocks.11"),
        ("sd1", without("first_stage_model.decoder.conv_in"), "missing: decoder.conv_in.weight"),
        ("sd1", thin_out, "differ in depth"),
        ("sd1", widen_context, "takes texts of width 77, its text encoders make 64"),
        ("sd1", change_type, "out.2.bias is int64"),
        ("sd1", add_key, "2 unknown: .*model.diffusion_model.more.weight"),
        ("sd1", reshape_key, r"out.0.bias is \(31,\) and not \(32,\)"),
        (
            "sd1",
            reshape_to("model.diffusion_model.out.2.weight"),
            r"out.2.weight has the shape \(\); it must have 4 sides",
        ),
        (
            "sd1",
            reshape_to("first_stage_model.encoder.mid.attn_1.q.bias", 0, 2**40),
            r"q.bias is \(0, 1099511627776\) and not \(64,\)",
        ),
        (
            "sd2",
            reshape_to("model.diffusion_model.input_blocks.0.0.weight", 64, 4, 0, 3),
            "of the wrong shape",
        ),
        (
            "sdxl",
            reshape_to("model.diffusion_model.label_emb.0.0.weight", 256, 80),
            "too narrow for the size conditions",
        ),
        ("sd1", deepen_vae, "its U-Net makes 4 channels, its autoencoder takes 16"),
        ("sdxl", add_edm, "trained with EDM's noise levels"),
    ],
)
def test_files_that_are_wrong(
    name: str,
    change: Callable[[dict[str, Tensor]], None],
    message: str,
    files: dict[str, Path],
    tmp_path: Path,
) -> None:
    path = rewrite(files[name], tmp_path / "wrong.safetensors", change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["lora_unet_down_blocks_0.lora_up.weight"], "a LoRA"),
        (["unet.down_blocks.0.attn.to_q.lora_A.weight"], "a LoRA"),
        (["unet:0:up", "unet:0:down"], "a LoRA"),
        (["emb_params"], "a textual-inversion embedding"),
        (["<frog>"], "a textual-inversion embedding"),
        (["clip_l", "clip_g"], "a textual-inversion embedding"),
        (["encoder.down.0.block.0.norm1.weight"], "a VAE alone"),
        (["decoder.up_blocks.0.resnets.0.norm1.weight"], "a VAE alone"),
        (["backbone.conv_in.bias", "vae.encoder.down.0"], "a file of Pellucid's own layout"),
        (["text_model.embeddings.position_ids"], "a text encoder alone"),
        (["down_blocks.0.resnets.0.norm1.weight"], "a U-Net alone"),
        (["control_model.time_embed.0.weight"], "a ControlNet"),
        (["joint_blocks.0.x_block.attn.proj.weight"], "Stable Diffusion 3 as a single file"),
        (["0.weight", "1.conv.0.weight"], r"a tiny autoencoder \(TAESD\) alone"),
    ],
)
def test_other_files_are_named(keys: list[str], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({key: torch.zeros(3) for key in keys}, path)
    with pytest.raises(CheckpointError, match=f"is {kind}, not a model") as caught:
        load(path)
    beside = ("a LoRA", "a textual-inversion embedding", "a VAE alone", "a tiny autoencoder")
    assert ("use it together with a model" in str(caught.value)) == kind.startswith(beside)


def index_of(folder: Path, places: Any) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": places}))
    return path


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a": "none.safetensors"}, "which does not exist"),
        ({"a": "../one.safetensors"}, "it must be in the same folder"),
        ({"a": "/etc/passwd"}, "it must be in the same folder"),
        ({"a": "..\\one.safetensors"}, "it must be in the same folder"),
        ({"a": ".."}, "it must be in the same folder"),
        ({"a": "model.safetensors.index.json"}, "is itself an index"),
        ({"b": "one.safetensors"}, "does not list a, which is in"),
        ({"a": "one.safetensors", "b": "one.safetensors"}, "lists b in"),
        ({"a": "one.safetensors", "b": "two.safetensors"}, "a is in two.* and in one"),
        ([], "is not an index of weights"),
        ({"a": 3}, "which does not exist"),
    ],
)
def test_indices_that_are_wrong(places: Any, message: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "one.safetensors")
    save_file({"a": torch.zeros(3), "b": torch.zeros(3)}, tmp_path / "two.safetensors")
    path = index_of(tmp_path, places)
    with pytest.raises(CheckpointError, match=message):
        weights_module.open_weights(path)
    with pytest.raises(CheckpointError):
        load(path)


MUTATIONS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["put", "cut", "insert", "end"]),
        st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, b"99999999", bytes(8)]),
    ),
    min_size=1,
    max_size=3,
)


def content_of(kind: str) -> bytes:
    weights = {
        "a": noise(4, 5),
        "b": noise(3).half(),
        "c": torch.arange(3),
        "d": noise(2).bfloat16(),
    }
    if kind == "safetensors":
        return serialize(weights)
    if kind == "index":
        return json.dumps({"weight_map": dict.fromkeys(weights, "one.safetensors")}).encode()
    buffer = io.BytesIO()
    whole = {"state_dict": weights, "epoch": 2}
    torch.save(whole, buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["safetensors", "index", "zip", "legacy"])
@settings(max_examples=25, deadline=None)
@given(changes=MUTATIONS)
def test_damaged_files(kind: str, changes: list[tuple[float, str, bytes]]) -> None:
    """A file with damage anywhere gives its tensors or a CheckpointError, and nothing else."""
    data = bytearray(content_of(kind))
    for place, what, piece in changes:
        # Damage is more likely where the names and the numbers of the format are.
        at = int(place**3 * len(data))
        if what == "put":
            data[at : at + len(piece)] = piece
        elif what == "cut":
            del data[at : at + len(piece)]
        elif what == "insert":
            data[at:at] = piece
        else:
            del data[at:]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "one.safetensors").write_bytes(content_of("safetensors"))
        path = Path(folder) / "model"
        path.write_bytes(data)
        with contextlib.suppress(CheckpointError):
            for stored in weights_module.open_weights(path).values():
                for dtype in (torch.float32, stored.dtype):
                    assert stored.get(dtype).shape == stored.shape
        with pytest.raises(CheckpointError):
            load(path)


PEAK = """
import re, sys
from pathlib import Path
import torch
from pellucid.checkpoints import weights as weights_module

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

torch.zeros(1000).half().float()
before = peak()
weights = weights_module.open_weights(Path(sys.argv[1]))
kept = [stored.get(getattr(torch, sys.argv[2])) for stored in weights.values()]
total = sum(float(tensor[::512].float().sum()) for tensor in kept)  # every page is touched
print((peak() - before) / sum(tensor.nbytes for tensor in kept))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is Linux's")
@pytest.mark.parametrize(("pickled", "dtype"), [(False, "float32"), (True, "float32")])
def test_no_second_copy(pickled: bool, dtype: str, tmp_path: Path) -> None:
    weights = {str(i): torch.ones(2**22, dtype=torch.float16) for i in range(20)}
    path = tmp_path / "weights"
    if pickled:
        torch.save(weights, path)
    else:
        save_file(weights, path)
    command = [sys.executable, "-c", PEAK, str(path), dtype]
    environment = os.environ | {"PYTHONPATH": str(Path(checkpoints.__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    # A few megabytes of any program's own; at a model's size they are less than a hundredth.
    assert float(done.stdout) < (1.4 if pickled else 1.2)


# ---------------------------------------------------------------- models that have no place


def test_models_that_cannot_be_written(models: dict[str, Model], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    sd1 = models["sd1"]
    for model, message in (
        (replace(sd1, backbone=nn.Linear(1, 1)), "the backbone is a Linear"),
        (replace(sd1, prediction="flow"), "the prediction"),
        (replace(sd1, schedule=Schedule("cosine")), "no place for this schedule: name cosine"),
        (
            replace(sd1, text_encoding=sd2.FAMILY.text_encoding),
            "no place for this text encoding",
        ),
        (model_of("sd1", heads=(4,) * 4), "no place for this U-Net: heads"),
        (
            model_of("sd1", map_channels=2, pooled_dim=8),
            "no place for the map that its U-Net draws from the text",
        ),
        (model_of("sd1", in_channels=5), "takes 5 channels"),
        (
            replace(sd1, vae=VAE(replace(sd1.vae.config, scaling_factor=0.5))),
            "no place for this autoencoder: scaling_factor 0.5, which would be read as 0.18215",
        ),
    ):
        with pytest.raises(CheckpointError, match=message):
            ldm.write(model, path)
        assert not path.exists()


def test_metadata_says_what_it_is(files: dict[str, Path]) -> None:
    with safe_open(files["sd2"], framework="pt") as file:
        assert file.metadata()["modelspec.prediction_type"] == "epsilon"
    assert checkpoints.describe(files["sd2"])["prediction"] == "eps"
