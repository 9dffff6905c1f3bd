"""diffusers' folders: what diffusers and transformers save is read here, and the other way round."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pellucid.backbones.unet import UNet
from pellucid.checkpoints import _families, describe, load
from pellucid.checkpoints._families import FAMILIES
from pellucid.diffusion import Conditioning
from pellucid.schedule import Schedule
from pellucid.tokenizer import Tokenizer
from references import (
    NAMES,
    TEXTS,
    UNETS,
    close,
    noise,
    small_vocabulary,
    their_pipeline,
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_vocabulary(tmp_path_factory.mktemp("vocabulary") / "tokenizer")


@pytest.fixture(autouse=True, scope="module")
def small(vocabulary: Path) -> Any:
    """CLIP's vocabulary is looked at elsewhere."""
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
    ids = torch.tensor([[514, 320, 125, 515, 515], [514, 5, 515, 0, 0]])
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
        assert model.reading.zero_empty == (name == "sdxl")
        told = describe(folder)
        assert (told["format"], told["family"]) == ("diffusers", family.title)
        assert len(told["parameters"]) == 2 + len(TEXTS[name])
