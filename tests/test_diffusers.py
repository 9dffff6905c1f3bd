"""diffusers' folders: what diffusers and transformers save is read here, and the other way round."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pellucid.backbones.unet import UNet
from pellucid.checkpoints import _families, describe, load, save
from pellucid.checkpoints._families import FAMILIES
from pellucid.diffusion import Conditioning
from pellucid.schedule import Schedule
from pellucid.tokenizer import Tokenizer
from references import (
    NAMES,
    TEXTS,
    UNETS,
    assert_same,
    close,
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
    patch.setattr(_families, "clip_tokenizer", lambda: tokenizer)
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
    shutil.copytree(source, target)
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
        got = tower(ids, ours.reading.layer, ours.reading.final_norm)
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
        assert model.defaults == family.defaults("eps")
        expected = replace(family.reading, layer=-1) if name in ("sd1", "sd2") else family.reading
        assert model.reading == expected
        assert model.tokenizer.table() == _families.clip_tokenizer().table()
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
    for source, target in itertools.permutations(FORMS, 2):
        path = written(target, tmp_path / f"{source}-{target}")
        path.parent.mkdir()
        again = load(written(source, tmp_path), dtype=None)
        assert_same(model, again)
        save(again, path, to=target)
        same_weights(written(target, tmp_path), path)
        shutil.rmtree(path.parent)
