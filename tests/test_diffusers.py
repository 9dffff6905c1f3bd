"""diffusers' folders: what diffusers and transformers save is read here, and the other way round."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pellucid import conditioning
from pellucid.backbones.unet import UNet
from pellucid.checkpoints import (
    CheckpointError,
    describe,
    key_names,
    load,
    save,
    tokenizer_files,
    weight_files,
)
from pellucid.clip import TextTower
from pellucid.diffusion import Conditioning
from pellucid.runtime import Runtime
from pellucid.schedule import Schedule
from pellucid.tokenizer import Tokenizer
from references import (
    FAMILIES,
    NAMES,
    TEXTS,
    UNETS,
    assert_same,
    close,
    model_of,
    noise,
    small_vocabulary,
    their_pipeline,
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(autouse=True, scope="module")
def small(vocabulary: Path) -> Any:
    """Where a file says nothing of its tokenizer, it is the same one."""
    tokenizer = Tokenizer.from_files(vocabulary / "vocab.json", vocabulary / "merges.txt")
    patch = pytest.MonkeyPatch()
    patch.setattr(tokenizer_files, "clip_tokenizer", lambda: tokenizer)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def pipelines(vocabulary: Path) -> dict[str, Any]:
    return {name: their_pipeline(name, vocabulary) for name in NAMES}


@pytest.fixture(scope="module")
def folders(pipelines: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(root / name)
    return {name: root / name for name in NAMES}


def copy(
    source: Path, target: Path, change: Callable[[Path], object] = lambda folder: None
) -> Path:
    """The weights are linked: they may be replaced, and not written over."""

    def put(one: str, other: str) -> None:
        os.link(one, other) if one.endswith(".safetensors") else shutil.copy(one, other)

    shutil.copytree(source, target, copy_function=put)
    change(target)
    return target


def edit(file: str, **values: Any) -> Callable[[Path], None]:
    """Change the JSON in `file`; ... takes a key away."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text()) | values
        content = {key: value for key, value in content.items() if value is not ...}
        (folder / file).write_text(json.dumps(content))

    return change


# ---------------------------------------------------------------- what diffusers saves


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_what_diffusers_saves_gives_its_numbers(
    name: str, pipelines: dict[str, Any], folders: dict[str, Path]
) -> None:
    theirs, ours = pipelines[name], load(folders[name])
    assert isinstance(ours.backbone, UNet)
    config = ours.backbone.config
    assert config == UNETS[name]
    sized = config.size_conditions
    pooled = noise(2, config.pooled_dim, seed=2) if sized else None
    sizes = 100 * torch.rand(2, config.size_count) if sized else None
    x, t = noise(2, 4, 16, 16), torch.tensor([3.0, 700.0])
    tokens = noise(2, 7, config.cross_attention_dim, seed=1)
    extra = {"text_embeds": pooled, "time_ids": sizes} if sized else None
    close(
        ours.backbone(x, t, Conditioning(tokens, pooled, sizes)),
        theirs.unet(x, t, tokens, added_cond_kwargs=extra).sample,
    )
    pixels = noise(1, 3, 16, 16)
    close(ours.vae.encode(pixels).mean, theirs.vae.encode(pixels).latent_dist.mean)
    close(ours.vae.decode(x[:1]), theirs.vae.decode(x[:1]).sample)
    ids = torch.tensor([[49406, 320, 125, 49407, 49407], [49406, 5, 49407, 0, 0]])
    towers = [getattr(theirs, key, None) for key in ("text_encoder", "text_encoder_2")]
    towers = [tower for tower in towers if tower is not None]
    for tower, expected in zip(filter(None, (ours.text, ours.text_2)), towers, strict=True):
        said = expected(ids, output_hidden_states=True)
        got = tower(ids, ours.text_encoding.layer, ours.text_encoding.final_norm)
        if name.startswith("sdxl"):
            close(got.hidden, said.hidden_states[-2])
        else:
            close(got.hidden, said.last_hidden_state)
        if tower.config.projection is not None:
            close(got.projected, said.text_embeds)


def test_what_a_folder_says(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, folder in folders.items():
        model, family = load(folder), FAMILIES[name]
        assert model.name == name
        assert model.schedule == Schedule("scaled_linear", 1000, 0.00085, 0.012)
        assert model.prediction == "eps"
        assert model.vae.config.scaling_factor == family.vae.scaling_factor
        assert model.defaults == family.defaults_for("eps")
        expected = (
            replace(family.text_encoding, layer=-1, left_out=1)
            if name == "sd2"
            else family.text_encoding
        )
        assert model.text_encoding == expected
        assert model.tokenizer.table() == tokenizer_files.clip_tokenizer().table()
        told = describe(folder)
        assert (told["format"], told["family"]) == ("diffusers", family.title)
        assert len(told["parameters"]) == 2 + len(TEXTS[name])


# ---------------------------------------------------------------- conversions

FORMS = ("diffusers", "ldm", "native")


def written(form: str, folder: Path) -> Path:
    return folder / form if form == "diffusers" else folder / f"{form}.safetensors"


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """All weights in a file or under a folder, by their file's place and their key."""
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    return {
        f"{file.parent.name if path.is_dir() else ''}/{key}": value
        for file in files
        for key, value in load_file(file).items()
    }


def same_weights(one: Path, other: Path) -> None:
    a, b = weights_of(one), weights_of(other)
    assert a.keys() == b.keys()
    assert all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", NAMES)
def test_every_conversion_gives_every_bit(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    model = load(folders[name], dtype=None)
    assert save(model, written("diffusers", tmp_path), to="diffusers") == ()
    for form in FORMS:
        save(model, written(form, tmp_path), to=form)
    for source in FORMS:
        again = load(written(source, tmp_path), dtype=None)
        assert_same(model, again)
        for target in set(FORMS) - {source}:
            path = written(target, tmp_path / f"{source}-{target}")
            path.parent.mkdir()
            save(again, path, to=target)
            same_weights(written(target, tmp_path), path)
            shutil.rmtree(path.parent)


def test_another_type(folders: dict[str, Path], tmp_path: Path) -> None:
    model = load(folders["sd1"], dtype=None)
    half, path = written("ldm", tmp_path), written("diffusers", tmp_path)
    save(model, half, torch.float16, to="ldm")
    save(load(half, dtype=None), path, to="diffusers")
    assert {weight.dtype for weight in weights_of(path).values()} == {torch.float16}
    expected = weights_of(folders["sd1"])
    key = "unet/mid_block.resnets.0.conv1.weight"
    assert torch.equal(weights_of(path)[key], expected[key].half())
    assert describe(path)["types"].keys() == {"float16"}


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_diffusers_reads_what_is_written(
    name: str, pipelines: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    """Its own pipeline of the folder has the weights, the settings, and the prompt's numbers."""
    diffusers = pytest.importorskip("diffusers")
    path = written("diffusers", tmp_path)
    save(load(folders[name], dtype=None), path, to="diffusers")
    again = diffusers.DiffusionPipeline.from_pretrained(path, local_files_only=True)
    assert type(again) is type(pipelines[name])
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        one, other = getattr(pipelines[name], part, None), getattr(again, part, None)
        assert (one is None) == (other is None)
        if one is not None:
            a, b = one.state_dict(), other.state_dict()
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in a)
            assert type(one) is type(other)
    for part in ("tokenizer", "tokenizer_2"):
        one, other = getattr(pipelines[name], part, None), getattr(again, part, None)
        if one is not None:
            long = {"padding": "max_length", "max_length": 77, "truncation": True}
            assert one("a red Apple!", **long).input_ids == other("a red Apple!", **long).input_ids
    assert again.unet.config.attention_head_dim == list(UNETS[name].heads)
    assert again.vae.config.scaling_factor == FAMILIES[name].vae.scaling_factor
    assert again.scheduler.config.prediction_type == "epsilon"
    pixels = FAMILIES[name].defaults_for("eps").width
    assert again.unet.config.sample_size * again.vae_scale_factor == pixels
    if name == "sdxl_refiner":
        assert again.config.requires_aesthetics_score


@pytest.mark.parametrize("name", NAMES)
def test_diffusers_reads_the_original_layout(
    name: str, pipelines: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    diffusers = pytest.importorskip("diffusers")
    path = written("ldm", tmp_path)
    save(load(folders[name], dtype=None), path, to="ldm")
    kind = type(pipelines[name])
    assert issubclass(kind, diffusers.DiffusionPipeline)
    again = kind.from_single_file(str(path), config=str(folders[name]), local_files_only=True)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        one, other = getattr(pipelines[name], part, None), getattr(again, part, None)
        if one is not None:
            a, b = one.state_dict(), other.state_dict()
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in a)


def test_sd2_is_written_without_the_layer_that_it_does_not_use(tmp_path: Path) -> None:
    """And gives the same vectors: diffusers reads the last layer that is stored."""
    model = model_of("sd2", "v")
    text = replace(model.text.config, vocab_size=49408)
    model = replace(model, text=TextTower(text).eval())
    path = tmp_path / "short"
    left_out = save(model, path, to="diffusers")
    assert len(left_out) == 2 and "layer 2 of text_encoder" in left_out[0]
    again = load(path)
    assert again.text.config == replace(text, layers=2, projection=None)
    assert again.text_encoding == replace(model.text_encoding, layer=-1, left_out=1)
    assert again.prediction == "v"
    ids = model.tokenizer(["a red apple"])
    expected = model.text(ids, model.text_encoding.layer, model.text_encoding.final_norm).hidden
    got = again.text(ids, again.text_encoding.layer, again.text_encoding.final_norm).hidden
    assert torch.equal(got, expected)
    # Clip skip counts the layer that was left out.
    for skip in (2, 3):
        one, other = (
            conditioning.encode_prompts(Runtime(m), ["a red apple"], skip).tokens
            for m in (model, again)
        )
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"from 2 to 3, got 1: .* \(the last 1 is left out\)"):
        conditioning.encode_prompts(Runtime(again), ["a red apple"], 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vae": {"patch_size": 2}}, "no place for patches of 2x2 pixels in its autoencoder"),
        ({"schedule": Schedule("sigmoid")}, "no schedule 'sigmoid'"),
        ({"schedule": Schedule("flow")}, "no schedule 'flow' with the prediction 'eps'"),
        ({"text_encoding": {"layer": -2, "final_norm": False}}, "text encoding: layer -2"),
        (
            {
                "backbone": {"pooled_dim": 12, "map_channels": 2, "film": True},
                "vae": {"shortcut": True},
            },
            "the map .* from the text; FiLM in its U-Net; the linear shortcut of its autoencoder$",
        ),
        (
            {"tokenizer": Tokenizer.train(["a"], 270)},
            "no place for its tokenizer, which is not of CLIP",
        ),
    ],
)
def test_models_without_a_place_in_the_layout(
    change: dict[str, Any], message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    model = load(folders["sd1"])
    for name, value in change.items():
        if isinstance(value, dict):
            part = getattr(model, name)
            if name == "text_encoding":
                value = replace(part, **value)
            else:
                value = type(part)(replace(part.config, **value))
        model = replace(model, **{name: value})
    path = tmp_path / "none"
    with pytest.raises(CheckpointError, match=message) as caught:
        save(model, path, to="diffusers")
    assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_written_whole_or_not_at_all(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folders["sd1"])
    path = tmp_path / "model"
    path.mkdir()
    (path / "letter.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not such a folder; it was left alone"):
        save(model, path, to="diffusers")
    assert [file.name for file in path.iterdir()] == ["letter.txt"]
    with pytest.raises(CheckpointError, match="is not a folder"):
        save(model, tmp_path / "none" / "model", to="diffusers")
    (path / "letter.txt").rename(path / "model_index.json")  # now it may be replaced
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="disk is full"):
        patch.setattr("os.fsync", full)
        save(model, path, to="diffusers")
    assert (path / "model_index.json").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]
    save(model, path, to="diffusers")
    assert_same(model, load(path))
    assert list(tmp_path.iterdir()) == [path]


def full(*_: Any) -> None:
    raise OSError("the disk is full")


def test_unknown_formats(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown format 'diffuser'; .* nearest first: diffusers"):
        save(load(folders["sd1"]), tmp_path / "x", to="diffuser")


# ---------------------------------------------------------------- how folders differ


def variants(variant: str) -> Callable[[Path], None]:
    """Weights only under the name of a variant."""

    def change(folder: Path) -> None:
        for path in [*folder.rglob("*.safetensors"), *folder.rglob("*.bin")]:
            path.rename(path.with_name(f"{path.stem}.{variant}{path.suffix}"))

    return change


def add_half(folder: Path) -> None:
    """A variant beside the plain file, which is the one to read."""
    for path in list(folder.rglob("*.safetensors")):
        half = {key: value.half() for key, value in load_file(path).items()}
        save_file(half, path.with_name(f"{path.stem}.fp16.safetensors"))


def pickled(folder: Path) -> None:
    for path in list(folder.rglob("*.safetensors")):
        stem = "pytorch_model" if path.stem == "model" else path.stem
        torch.save(load_file(path), path.with_name(f"{stem}.bin"))
        path.unlink()


def index_name(name: str) -> Callable[[Path], None]:
    """Two files for each part, and an index of this name."""

    def change(folder: Path) -> None:
        for path in list(folder.rglob("*.safetensors")):
            weights, places = load_file(path), {}
            for i, keys in enumerate((sorted(weights)[::2], sorted(weights)[1::2]), 1):
                shard = f"{path.stem}-0000{i}-of-00002.safetensors"
                save_file({key: weights[key] for key in keys}, path.with_name(shard))
                places |= dict.fromkeys(keys, shard)
            index = {"metadata": {}, "weight_map": places}
            path.with_name(name.format(path.stem)).write_text(json.dumps(index))
            path.unlink()

    return change


def old_vae(folder: Path) -> None:
    """diffusers before 0.17."""
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    for old, new in key_names.OLD_ATTENTION.items():
        for key in [key for key in weights if f".attentions.0.{new}." in key]:
            weights[key.replace(f".{new}.", f".{old}.")] = weights.pop(key)
    path.unlink()
    save_file(weights, path)


def published_text(folder: Path) -> None:
    """As transformers wrote it in 2022: another level of names, and a buffer."""
    path = folder / "text_encoder" / "model.safetensors"
    weights = {f"text_model.{key}": value for key, value in load_file(path).items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    path.unlink()
    save_file(weights, path)
    edit("text_encoder/config.json", eos_token_id=2)(folder)


def two_file_vocabulary(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()
    small_vocabulary(folder / "tokenizer")


def no_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")
    edit("model_index.json", tokenizer=[None, None])(folder)


def checker(folder: Path) -> None:
    (folder / "safety_checker").mkdir()
    edit("model_index.json", safety_checker=["stable_diffusion", "SafetyChecker"])(folder)


@pytest.mark.parametrize(
    "change",
    [
        variants("fp16"),
        variants("non_ema"),
        add_half,
        pickled,
        index_name("{}.safetensors.index.json"),
        index_name("{}.safetensors.index.fp16.json"),
        index_name("{}.fp16.safetensors.index.json"),
        old_vae,
        published_text,
        two_file_vocabulary,
        no_tokenizer,
        checker,
    ],
)
def test_folders_that_differ(
    change: Callable[[Path], None], folders: dict[str, Path], tmp_path: Path
) -> None:
    path = copy(folders["sd1"], tmp_path / "other", change)
    assert_same(load(folders["sd1"]), load(path))
    told = describe(path)
    assert told["unused parts"] == (["safety_checker"] if change is checker else [])
    assert bool(told["unused keys"]) == (change is published_text)


@pytest.mark.parametrize(
    ("there", "read"),
    [
        (["model.safetensors", "model.fp16.safetensors"], "model.safetensors"),
        (
            ["model.safetensors.index.json", "model.fp16.safetensors"],
            "model.safetensors.index.json",
        ),
        (["model.bf16.safetensors", "model.fp16.safetensors"], "model.fp16.safetensors"),
        (["model.non_ema.safetensors", "model.bf16.safetensors"], "model.bf16.safetensors"),
        (["pytorch_model.bin", "model.fp16.safetensors"], "model.fp16.safetensors"),
        (["pytorch_model.bin", "pytorch_model.fp16.bin"], "pytorch_model.bin"),
        (["model-00001-of-00002.safetensors", "openvino_model.bin", "model.onnx"], None),
        (["diffusion_flax_model.msgpack", "model.safetensors/"], None),
    ],
)
def test_which_of_several_files(there: list[str], read: str | None, tmp_path: Path) -> None:
    for name in there:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    if read is None:
        with pytest.raises(CheckpointError, match="has no weights"):
            weight_files.weights_of(tmp_path)
    else:
        assert weight_files.weights_of(tmp_path) == tmp_path / read


@pytest.mark.parametrize(
    ("said", "prediction", "expected"),
    [
        ({"prediction_type": "v_prediction"}, None, "v"),
        ({"prediction_type": "sample"}, None, "x0"),
        ({"prediction_type": ...}, None, "eps"),
        ({"prediction_type": "v_prediction"}, "eps", "eps"),
    ],
)
def test_what_is_predicted(
    said: dict[str, Any],
    prediction: str | None,
    expected: str,
    folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    change = edit("scheduler/scheduler_config.json", **said)
    path = copy(folders["sd2"], tmp_path / "said", change)
    model = load(path, prediction=prediction)
    assert model.prediction == expected
    assert model.defaults == FAMILIES["sd2"].defaults_for(expected)


def test_sd2_without_a_scheduler_asks(folders: dict[str, Path], tmp_path: Path) -> None:
    path = copy(folders["sd2"], tmp_path / "silent")
    shutil.rmtree(path / "scheduler")
    with pytest.raises(CheckpointError, match=r"prediction must be given, eps .* or v"):
        load(path)
    assert "prediction must be given" in describe(path)["prediction"]
    assert load(path, prediction="v").prediction == "v"


def test_schedules(folders: dict[str, Path], tmp_path: Path) -> None:
    said = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    path = copy(folders["sd2"], tmp_path / "a", edit("scheduler/scheduler_config.json", **said))
    model = load(path)
    assert model.schedule.zero_terminal_snr and model.defaults.spacing == "trailing"
    save(model, tmp_path / "again", to="diffusers")
    assert_same(model, load(tmp_path / "again"))
    said = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 500}
    path = copy(folders["sd2"], tmp_path / "b", edit("scheduler/scheduler_config.json", **said))
    theirs = pytest.importorskip("diffusers").DDIMScheduler.from_pretrained(path / "scheduler")
    got = load(path).schedule.alphas_cumprod
    torch.testing.assert_close(got.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("name", "channels"), [("sd1", 9), ("sd2", 9), ("sdxl", 9), ("sd1", 8)])
def test_inpainting_and_pix2pix(name: str, channels: int, vocabulary: Path, tmp_path: Path) -> None:
    their_pipeline(name, vocabulary, in_channels=channels).save_pretrained(tmp_path / "in")
    model = load(tmp_path / "in")
    use = "inpainting" if channels == 9 else "pix2pix"
    assert describe(tmp_path / "in")["family"] == f"{FAMILIES[name].title} {use}"
    save(model, tmp_path / "out", to="diffusers")
    said = json.loads((tmp_path / "out" / "model_index.json").read_text())["_class_name"]
    assert (
        said
        == {
            ("sd1", 9): "StableDiffusionInpaintPipeline",
            ("sd2", 9): "StableDiffusionInpaintPipeline",
            ("sdxl", 9): "StableDiffusionXLInpaintPipeline",
            ("sd1", 8): "StableDiffusionInstructPix2PixPipeline",
        }[name, channels]
    )
    assert_same(model, load(tmp_path / "out"))
    diffusers = pytest.importorskip("diffusers")
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    assert type(again).__name__ == said and again.unet.config.in_channels == channels


# ---------------------------------------------------------------- what is wrong with a folder


def remove(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def write(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(text)

    return change


UNET_JSON, WEIGHTS = "unet/config.json", "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("model_index.json"), "is a folder, and not one of diffusers'"),
        (write("model_index.json", "[]"), "model_index.json is not a JSON object"),
        (write("model_index.json", "{"), "model_index.json cannot be read as JSON"),
        (write("model_index.json", '{"a": ' * 10**5), "cannot be read as JSON"),
        (write("model_index.json", " " * 2**21), "has more than 1048576 bytes"),
        (write("model_index.json", "{}"), "has no known backbone .*; it has nothing"),
        (edit("model_index.json", unet=["diffusers", "Kandinsky"]), "it has .*unet of Kandinsky"),
        (edit("model_index.json", unet=["diffusers", ["a"]]), "has no known backbone"),
        (
            edit("model_index.json", vae=["diffusers", "VQModel"]),
            "without its autoencoder .a folder vae of Auto",
        ),
        (edit("model_index.json", text_encoder=[None, None]), "has no text encoder"),
        (edit("model_index.json", text_encoder=["x", "T5"]), "its text_encoder is T5; known are"),
        (remove("unet"), "config.json does not exist"),
        (remove("vae/config.json"), "config.json does not exist"),
        (remove(WEIGHTS), "unet has no weights"),
        (edit(UNET_JSON, _class_name="UNet1D"), "_class_name is 'UNet1D'"),
        (
            edit(UNET_JSON, layers_per_block=10**9),
            "layers_per_block is '1000000000'; it must be a list",
        ),
        (edit(UNET_JSON, layers_per_block=10**6), "no UNet can be built"),
        (edit(UNET_JSON, transformer_layers_per_block=10**6), "more than 8192 parameters"),
        (edit(UNET_JSON, block_out_channels=[320, "640"]), "whole numbers from 1"),
        (edit(UNET_JSON, block_out_channels=[]), "block_out_channels is"),
        (edit(UNET_JSON, layers_per_block=[1, 2, 2, 2]), "the same number at every level"),
        (edit(UNET_JSON, transformer_layers_per_block=[[1], 1, 1, 1]), "whole numbers from 1"),
        (edit(UNET_JSON, down_block_types=["AttnDownBlock2D"]), "has 'AttnDownBlock2D'; known are"),
        (edit(UNET_JSON, up_block_types=["UpBlock2D"]), "down_block_types in reverse order"),
        (edit(UNET_JSON, cross_attention_dim=65), "takes texts of width 65"),
        (edit(UNET_JSON, in_channels=True), "in_channels is 'True'; it must be a whole number"),
        (edit(UNET_JSON, in_channels=5), "takes 5 channels"),
        (edit(UNET_JSON, out_channels=5), "makes 5 channels, its autoencoder takes 4"),
        (edit(UNET_JSON, norm_eps="x"), "norm_eps is 'x'; it must be a number"),
        (edit(UNET_JSON, norm_eps=float("nan")), "norm_eps is 'nan'; it must be a number"),
        (edit(UNET_JSON, norm_num_groups=7), "no UNet can be built"),
        (
            edit(UNET_JSON, time_cond_proj_dim=256),
            "time_cond_proj_dim is '256'; it must be None",
        ),
        (edit(UNET_JSON, mid_block_type=None), "mid_block_type is 'None'"),
        (edit(UNET_JSON, addition_embed_type="text"), "addition_embed_type is 'text'"),
        (
            edit(UNET_JSON, addition_embed_type="text_time"),
            "addition_time_embed_dim is 'None'; it must be 256",
        ),
        (
            edit(UNET_JSON, addition_embed_type="text_time", addition_time_embed_dim=256),
            "times 256 and the 0 of the text",
        ),
        (edit(UNET_JSON, warp=3), "warp is '3', which is not a known setting"),
        (edit(UNET_JSON, attention_head_dim=[8, 8]), "a list of 4 whole numbers"),
        (edit("vae/config.json", latent_channels=16), "makes 4 channels, its autoencoder takes 16"),
        (edit("vae/config.json", scaling_factor=0), "scaling_factor is '0'"),
        (edit("vae/config.json", latents_mean=[1]), "latents_mean is"),
        (edit("vae/config.json", block_out_channels=[32] * 9), "one entry for each of 9 levels"),
        (edit("text_encoder/config.json", hidden_act="relu"), "one of gelu, quick_gelu"),
        (edit("text_encoder/config.json", num_hidden_layers=10**5), "no TextTower can be built"),
        (edit("text_encoder/config.json", vocab_size=9), "does not fit its text tower"),
        (edit("scheduler/scheduler_config.json", beta_schedule="x"), "beta_schedule is 'x'"),
        (
            edit("scheduler/scheduler_config.json", beta_end=2.0),
            "beta_start 0.00085 and beta_end 2.0",
        ),
        (edit("scheduler/scheduler_config.json", trained_betas=[0.1]), "trained_betas is"),
        (edit("scheduler/scheduler_config.json", num_train_timesteps=-1), "from 2 to"),
        (write("tokenizer/tokenizer.json", "{"), "tokenizer is not a tokenizer of CLIP's kind"),
        (write("tokenizer/tokenizer.json", '{"model": {"vocab": {}, "merges": []}}'), "no <|start"),
        (write(WEIGHTS, "{}"), "is truncated or not a safetensors"),
    ],
)
def test_folders_that_are_wrong(
    change: Callable[[Path], None], message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    path = copy(folders["sd1"], tmp_path / "wrong", change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_part_of_another_model(folders: dict[str, Path], tmp_path: Path) -> None:
    path = copy(folders["sd1"], tmp_path / "mixed", remove("unet"))
    shutil.copytree(folders["sdxl"] / "unet", path / "unet")
    with pytest.raises(CheckpointError, match="times 256 and the 0 of the text encoder"):
        load(path)
