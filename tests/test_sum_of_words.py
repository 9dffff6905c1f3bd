"""A model that is told the sum of a prompt's words beside CLIP's vector, as the shipped one is,
goes through everything that takes a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pellucid import checkpoints
from pellucid.adapters import adapt
from pellucid.backbones.unet import UNet
from pellucid.checkpoints import CheckpointError
from pellucid.conditioning import encode_captions, encode_prompts
from pellucid.explain import autoencoder
from pellucid.explain import clip as explain_clip
from pellucid.explain.noise import NoiseSettings, examine_noise
from pellucid.explain.noise import page as noise_page
from pellucid.explain.run import Recorder
from pellucid.explain.run import page as explained
from pellucid.guidance import interpolate
from pellucid.model import Model, TextEncoding
from pellucid.pipeline import Request, generate
from pellucid.runtime import Runtime
from pellucid.train import lora as train_lora
from pellucid.train.lora import LoraOptions

PROMPTS = ("a red apple", "a rabbit")


@pytest.fixture(scope="module")
def words(model: Model) -> Model:
    """The tiny model, its network with room for 12 numbers of CLIP's and the 16 of the words."""
    assert isinstance(model.backbone, UNet)
    config = replace(model.backbone.config, pooled_dim=12 + 16, map_channels=2, film=True)
    torch.manual_seed(0)
    network = UNet(config)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    network.eval().requires_grad_(False)
    return replace(
        model, backbone=network, text_encoding=TextEncoding(pooled="words"), name="words"
    )


def drawn(model: Model, **fields: Any) -> Image.Image:
    *_, last = generate(model, Request(prompt=PROMPTS[0], seed=1, **fields))
    assert last.images is not None
    return last.images[0]


def test_training_and_drawing_are_told_the_same(words: Model) -> None:
    trained = encode_captions(words.text, words.tokenizer, PROMPTS, words=True).pooled
    used = encode_prompts(Runtime(words), PROMPTS).pooled
    assert trained is not None and used is not None and trained.shape == (2, 28)
    assert torch.allclose(trained, used, atol=1e-6)


def test_it_is_saved_and_read(words: Model, tmp_path: Path) -> None:
    checkpoints.save(words, tmp_path / "words.safetensors")
    again = checkpoints.load(tmp_path / "words.safetensors")
    assert again.text_encoding == words.text_encoding
    before, after = (np.asarray(drawn(model)).astype(int) for model in (words, again))
    # Sums may be rounded differently where memory is aligned differently.
    assert abs(before - after).max() <= 1


@pytest.mark.parametrize("layout", ["diffusers", "ldm"])
def test_other_layouts_have_no_place_for_it(words: Model, layout: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no place for .* the sum of the words"):
        checkpoints.save(words, tmp_path / "there", to=layout)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "fields",
    [
        {"mix": (("a rabbit", 0.5),)},
        {"mix": (("a rabbit", 0.5),), "mix_by": "embedding"},
        {"clip_guidance": 20.0},
        {"negative_prompt": "a rabbit", "prompt": "(a:1.5) red apple BREAK a rabbit"},
    ],
)
def test_what_a_request_may_ask_for(words: Model, fields: dict[str, Any]) -> None:
    request = Request.model_validate({"prompt": PROMPTS[0], "seed": 1} | fields)
    *_, last = generate(words, request)
    assert last.images is not None and last.images[0].tobytes() != drawn(words).tobytes()


def test_a_walk_from_prompt_to_prompt(words: Model) -> None:
    a, b = (encode_prompts(Runtime(words), [prompt]) for prompt in PROMPTS)
    for weight, end in ((0.0, a), (1.0, b)):
        pooled = interpolate(a, b, weight).pooled
        assert pooled is not None and end.pooled is not None
        assert torch.allclose(pooled, end.pooled, atol=1e-5)


def test_half_precision(words: Model, tmp_path: Path) -> None:
    checkpoints.save(words, tmp_path / "words.safetensors")
    half = checkpoints.load(tmp_path / "words.safetensors", dtype=torch.bfloat16)
    assert drawn(half).size == (16, 16)


def test_pages(words: Model, well_formed: Callable[[str], None]) -> None:
    photo = Image.new("RGB", (40, 30), "red")
    recorder = Recorder(words, Request(prompt=PROMPTS[0], seed=1))
    list(recorder.run())
    told = recorder.explanation(PROMPTS[0].split())
    for near in told.near:  # of CLIP's vector alone
        assert near.others[0] == (near.word, pytest.approx(1))
    assert "</html>" in explained.page(words, [told])[0]
    settings = NoiseSettings((0, 500), prompt=PROMPTS[0])
    well_formed(noise_page.html(examine_noise(words, photo, settings=settings)))
    assert autoencoder.round_trip(words, photo).cost.latent_operations > 0
    found = explain_clip.compare_pictures(words, [("photo", photo)], PROMPTS)
    assert len(found.cosines) == 3


def test_a_lora_is_learnt(words: Model, tmp_path: Path) -> None:
    checkpoints.save(words, tmp_path / "words.safetensors")
    (tmp_path / "data").mkdir()
    Image.new("RGB", (16, 16), "red").save(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "a.txt").write_text(PROMPTS[0])
    out = tmp_path / "loras" / "red.safetensors"
    options = LoraOptions(str(tmp_path / "data"), str(tmp_path / "words.safetensors"), out=out)
    train_lora.train(replace(options, rank=2, steps=2, batch=1, rate=0.1))
    # What the run would go on from lies beside it, and is not taken for it.
    request = Request(prompt="a red apple <lora:red:1>", seed=1)
    *_, last = generate(words, request, lambda m, r: adapt(m, r, folder=out.parent))
    assert last.images is not None and last.images[0].tobytes() != drawn(words).tobytes()
