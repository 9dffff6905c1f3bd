"""Stable Diffusion 3 in diffusers' layout: loaded, described, written, converted."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pellucid import checkpoints
from pellucid.backbones.mmdit import MMDiT, MMDiTConfig
from pellucid.checkpoints import CheckpointError
from pellucid.diffusion import Conditioning
from pellucid.model import Model
from pellucid.pipeline import generate
from pellucid.request import Request
from pellucid.schedule import Schedule
from references import (
    FAMILIES,
    TEXT_G,
    TEXT_L,
    VAE_TINY,
    assert_same,
    close,
    noise,
    shake,
    small_vocabulary,
    their_text,
)

VOCABULARY = 49408
BACKBONE = MMDiTConfig(
    layers=3,
    heads=2,
    head_width=16,
    cross_attention_dim=224,  # wider than both towers together
    pooled_dim=128,
    sample_size=16,
    max_patches=24,
)
TOWERS = (
    replace(TEXT_L, vocab_size=VOCABULARY, projection=48),
    replace(TEXT_G, vocab_size=VOCABULARY),
)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """diffusers' pipeline without T5, thin and random."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(2)
    vocabulary = str(small_vocabulary(tmp_path_factory.mktemp("vocabulary")))
    read = transformers.CLIPTokenizer.from_pretrained
    tokenizers = (
        read(vocabulary, model_max_length=77),
        read(vocabulary, model_max_length=77, pad_token="!"),
    )
    towers = [shake(their_text(tower, True, tokenizers[0].eos_token_id)) for tower in TOWERS]
    vae = replace(FAMILIES["sd3"].vae, **VAE_TINY)
    levels = len(vae.block_out_channels)
    return diffusers.StableDiffusion3Pipeline(
        transformer=shake(
            diffusers.SD3Transformer2DModel(
                sample_size=BACKBONE.sample_size,
                num_layers=BACKBONE.layers,
                num_attention_heads=BACKBONE.heads,
                attention_head_dim=BACKBONE.head_width,
                joint_attention_dim=BACKBONE.cross_attention_dim,
                caption_projection_dim=BACKBONE.width,
                pooled_projection_dim=BACKBONE.pooled_dim,
                pos_embed_max_size=BACKBONE.max_patches,
            )
        ),
        vae=shake(
            diffusers.AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * levels,
                up_block_types=("UpDecoderBlock2D",) * levels,
                block_out_channels=vae.block_out_channels,
                layers_per_block=vae.layers_per_block,
                latent_channels=vae.latent_channels,
                scaling_factor=vae.scaling_factor,
                shift_factor=vae.shift_factor,
                use_quant_conv=False,
                use_post_quant_conv=False,
            )
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=towers[0],
        tokenizer=tokenizers[0],
        text_encoder_2=towers[1],
        tokenizer_2=tokenizers[1],
        text_encoder_3=None,
        tokenizer_3=None,
    )


@pytest.fixture(scope="module")
def folder(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folders") / "sd3"
    theirs.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ours(folder: Path) -> Model:
    return checkpoints.load(folder)


@torch.no_grad()
def same_numbers(ours: Model, theirs: Any) -> None:
    x, t = noise(2, 16, 16, 12), torch.tensor([3.0, 700.0])
    tokens, pooled = noise(2, 9, BACKBONE.cross_attention_dim, seed=1), noise(2, 128, seed=2)
    close(
        ours.backbone(x, t, Conditioning(tokens, pooled)),
        theirs.transformer(x, tokens, pooled, t).sample,
    )
    pixels, z = noise(1, 3, 16, 16), noise(1, 16, 4, 4)
    close(ours.vae.encode(pixels).mean, theirs.vae.encode(pixels).latent_dist.mean)
    close(ours.vae.decode(z), theirs.vae.decode(z).sample)
    ids = torch.tensor([[49406, 320, 125, 49407, 49407], [49406, 5, 49407, 0, 0]])
    assert ours.text_2 is not None
    for tower, expected in ((ours.text, theirs.text_encoder), (ours.text_2, theirs.text_encoder_2)):
        said = expected(ids, output_hidden_states=True)
        got = tower(ids, ours.text_encoding.layer, ours.text_encoding.final_norm)
        close(got.hidden, said.hidden_states[-2])
        close(got.projected, said.text_embeds)


def test_loaded_it_gives_diffusers_numbers(ours: Model, theirs: Any) -> None:
    assert isinstance(ours.backbone, MMDiT) and ours.backbone.config == BACKBONE
    same_numbers(ours, theirs)


def test_what_the_folder_says(ours: Model, folder: Path, tmp_path: Path) -> None:
    family = FAMILIES["sd3"]
    assert ours.schedule == Schedule("flow", shift=3.0) and ours.prediction == "flow"
    assert ours.text_encoding == replace(family.text_encoding, width=224)
    assert ours.defaults == family.defaults_for("flow")
    assert ours.vae.config == replace(family.vae, **VAE_TINY)
    # T5 is left alone where there is one.
    whole = shutil.copytree(folder, tmp_path / "whole")
    index = json.loads((whole / "model_index.json").read_text())
    index |= {"text_encoder_3": ["transformers", "T5EncoderModel"]}
    (whole / "model_index.json").write_text(json.dumps(index))
    told = checkpoints.describe(whole)
    assert (told["family"], told["prediction"]) == ("Stable Diffusion 3", "flow")
    assert told["schedule"] == {"name": "flow", "T": 1000, "shift": 3.0}
    assert told["latents"].endswith("scale 1.5305, shift 0.0609")
    assert told["unused parts"] == ["text_encoder_3"]
    assert set(told["parameters"]) == {"backbone", "vae", "text", "text_2"}
    assert_same(ours, checkpoints.load(whole))


@pytest.mark.parametrize("form", ["diffusers", "native"])
def test_written_it_is_the_same_to_the_bit(ours: Model, form: str, tmp_path: Path) -> None:
    path = tmp_path / ("model" if form == "diffusers" else "model.safetensors")
    assert checkpoints.save(ours, path, to=form) == ()
    assert_same(ours, checkpoints.load(path, dtype=None))


def test_diffusers_loads_what_is_written(ours: Model, theirs: Any, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    tall = replace(
        ours, backbone=MMDiT(replace(BACKBONE, qk_norm=True, dual_attention_layers=(0, 2)))
    )
    for model, name in ((ours, "sd3"), (tall, "sd35")):
        checkpoints.save(model, tmp_path / name, to="diffusers")
        # diffusers asks to be told that there is no T5, of its own folders too.
        again = diffusers.StableDiffusion3Pipeline.from_pretrained(
            tmp_path / name, text_encoder_3=None, tokenizer_3=None
        )
        assert again.scheduler.config.shift == 3.0
        assert again.tokenizer_2.pad_token_id == 0
        same_numbers(model, again)
        assert_same(model, checkpoints.load(tmp_path / name))


def test_the_original_layout_has_no_place_for_it(ours: Model, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="for U-Nets, and the backbone is a MMDiT"):
        checkpoints.save(ours, tmp_path / "model.safetensors", to="ldm")


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            "transformer",
            {"pooled_projection_dim": 100},
            r"sum of the text encoders' projections \[48",
        ),
        (
            "transformer",
            {"joint_attention_dim": 100},
            r"sum of the text encoders' widths \[64",
        ),
        ("transformer", {"caption_projection_dim": 64}, "32, the width of the layers"),
        ("transformer", {"qk_norm": "layer_norm"}, "qk_norm is 'layer_norm'"),
        ("transformer", {"dual_attention_layers": [0, 3]}, "numbers from 0 to 2"),
        ("transformer", {"num_attention_heads": 3, "attention_head_dim": 6}, "a multiple of 4"),
        ("transformer", {"num_layers": 4}, "missing: transformer_blocks.2.*"),
        ("transformer", {"rope": True}, "rope is 'True', which is not a known setting"),
        ("scheduler", {"use_dynamic_shifting": True}, "use_dynamic_shifting"),
        ("scheduler", {"shift": 0.0}, "shift must be a positive number, got 0"),
        ("vae", {"latent_channels": 4}, "MMDiT makes 16 channels, its autoencoder takes 4"),
    ],
)
def test_what_does_not_fit_is_told(
    file: str, values: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    name = "scheduler_config.json" if file == "scheduler" else "config.json"
    config = json.loads((broken / file / name).read_text())
    (broken / file / name).write_text(json.dumps(config | values))
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(broken)


# ---------------------------------------------------------------- whole runs


@pytest.mark.parametrize("guidance", [7.0, 1.0])
def test_a_whole_run_gives_diffusers_picture(ours: Model, theirs: Any, guidance: float) -> None:
    size = {"width": 64, "height": 48}
    request = Request(
        prompt="a red hat", negative_prompt="red", seed=5, steps=10, guidance=guidance, **size
    )
    *_, done = generate(ours, request)
    assert (done.request.sampler, done.request.spacing) == ("euler", "linspace")
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        "a red hat",
        negative_prompt="red",
        num_inference_steps=10,
        guidance_scale=guidance,
        latents=noise(1, 16, 12, 16, seed=5),
        **size,
    ).images[0]
    assert done.images is not None
    a, b = (np.asarray(image).astype(int) for image in (done.images[0], expected))
    assert a.shape == b.shape == (48, 64, 3) and b.std() > 20
    assert abs(a - b).max() <= 1
