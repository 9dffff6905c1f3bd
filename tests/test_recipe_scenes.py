"""Several things in one picture: from a trained model to one that learns more, step by step."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pellucid import checkpoints
from pellucid.backbones.unet import UNet, UNetConfig
from pellucid.data.emoji import Concept, EmojiArt
from pellucid.diffusion import Conditioning, sample_t
from pellucid.pipeline import Request, generate
from pellucid.recipes import emoji, scenes
from pellucid.train import clip, decoder, diffusion, pack, pairs, vae
from pellucid.train.loop import load_state
from pellucid.train.upscaler import Pairs
from pellucid.vae import VAE, VAEConfig
from references import thin_recipe

EMOJI, SCENES = thin_recipe(emoji.RECIPE), thin_recipe(scenes.RECIPE)
NAMES = ("frog", "owl", "star", "heart", "boat", "key")
RUN: dict[str, Any] = {"steps": 2, "batch": 2, "device": "cpu"}
DIFFUSION: dict[str, Any] = RUN | {"pool": 6, "core": False, "channels": "32,64"}


def save_art(path: Path, size: int) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (len(NAMES), 4, 8, 8, 4), dtype=np.uint8)
    pixels = pixels.repeat(size // 8, 2).repeat(size // 8, 3)
    EmojiArt([Concept("x", (name,)) for name in NAMES], pixels).save(path)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the recipe ``emoji`` for 32 pixels, and art of 32 and of 128."""
    out = tmp_path_factory.mktemp("runs")
    art, recipe = save_art(out / "art32.npz", 32), EMOJI
    save_art(out / "art128.npz", 128)
    vae.train(vae.VAEOptions(art, out=out / "vae", **RUN), recipe)
    words = {"vocabulary": 300, "captions": 50}
    clip.train(clip.CLIPOptions(art, out=out / "clip", **RUN, **words), recipe)
    parts: dict[str, Path] = {"vae": out / "vae/vae.pt", "clip": out / "clip/state.pt"}
    first = diffusion.DiffusionOptions(art, **parts, out=out / "first", **DIFFUSION)
    diffusion.train(first, recipe)
    state = out / "first/state.pt"
    pack.train(pack.PackOptions(**parts, diffusion=state, out=out / "m.safetensors"), recipe)
    return out


def test_a_trained_network_grows_and_learns_scenes(runs: Path) -> None:
    options = diffusion.DiffusionOptions(
        runs / "art32.npz",
        vae=runs / "vae/vae.pt",
        clip=runs / "clip/state.pt",
        out=runs / "scenes",
        source="scenes",
        start=str(runs / "m.safetensors"),
        grow=True,
        times_mean=0.8,
        **DIFFUSION,
    )
    diffusion.train(options, SCENES)
    state = load_state(options.out / "state.pt")
    assert state is not None
    config = UNetConfig(**state["config"])
    assert (config.transformer_layers, config.map_width) == ((1, 1), scenes.MAP_WIDTH)
    pool = load_state(runs / "scenes/pool.pt")
    assert pool is not None and pool["columns"].shape[1] == 4
    with pytest.raises(ValueError, match=r"channels must be 32,64, .* got 64,64"):
        diffusion.train(replace(options, channels="64,64"), SCENES)


@pytest.mark.parametrize("kind", pairs.KINDS)
def test_pairs_are_aligned_and_complete_ones_stay(runs: Path, kind: str, tmp_path: Path) -> None:
    art, close = runs / "art128.npz", 2  # this model knows nothing by heart
    options = pairs.PairsOptions(
        str(runs / "m.safetensors"), art, tmp_path, kind=kind, pictures=2, close=close
    )
    folder = pairs.train(options)
    found = Pairs.load(folder, pairs.FACTOR)
    assert found.small.shape == (2, 32, 32, 3)
    truth = np.stack([pairs.box_mean(large, pairs.FACTOR) for large in found.large])
    if kind == "clean":
        assert (found.small == truth).all()
    else:
        assert (found.small != truth).any()
    again = pairs.train(replace(options, pictures=9, resume=True))
    assert len(np.load(again / "large.npy")) == 2


def test_pairs_too_far_apart_are_left_out(runs: Path, tmp_path: Path) -> None:
    options = pairs.PairsOptions(
        str(runs / "m.safetensors"), runs / "art128.npz", tmp_path, kind="redrawn", pictures=1
    )
    with pytest.raises(ValueError, match="no picture"):
        pairs.train(options)


def test_a_decoder_learns_from_redrawn_latents_too(runs: Path, tmp_path: Path) -> None:
    model, art = str(runs / "m.safetensors"), runs / "art128.npz"
    folder = pairs.train(pairs.PairsOptions(model, art, tmp_path, pictures=3, close=2))
    options = decoder.DecoderOptions(
        runs / "art32.npz",
        source="scenes",
        vae=runs / "vae/vae.pt",
        out=tmp_path / "decoder",
        redrawn=str(folder),
        redrawn_share=0.5,
        **RUN,
    )
    new = vae.trained(decoder.train(options, SCENES))
    old = vae.trained(runs / "vae/vae.pt")
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(new.to_latents(pixels), old.to_latents(pixels))
    latents = old.to_latents(pixels)
    assert not torch.equal(new.to_pixels(latents), old.to_pixels(latents))
    with pytest.raises(ValueError, match="pairs kind=redrawn"):
        decoder.train(replace(options, redrawn=str(runs)), SCENES)


def test_a_decoder_with_a_wider_kernel_begins_as_the_old_one() -> None:
    torch.manual_seed(0)
    config = VAEConfig(
        latent_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_groups=4,
        patch_size=2,
        mid_attention=False,
        shortcut=True,
    )
    old = VAE(config).eval()
    new = decoder.with_kernel(old, 3).eval()
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    latents = old.to_latents(pixels)
    torch.testing.assert_close(new.to_latents(pixels), latents)
    torch.testing.assert_close(new.to_pixels(latents), old.to_pixels(latents))
    with pytest.raises(ValueError, match="sees fewer than 3"):
        decoder.with_kernel(new, 3)


def test_a_grown_network_computes_the_same() -> None:
    torch.manual_seed(0)
    small = UNetConfig(
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        transformer_layers=(0, 1),
        heads=(1, 2),
        cross_attention_dim=16,
        norm_groups=8,
        pooled_dim=24,
        map_channels=4,
        film=True,
    )
    old = UNet(small)
    new = diffusion.grown(old, replace(small, transformer_layers=(1, 1), map_width=300))
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([100.0, 900.0])
    cond = Conditioning(torch.randn(2, 5, 16), torch.randn(2, 24))
    torch.testing.assert_close(new(x, t, cond), old(x, t, cond))
    with pytest.raises(ValueError, match="has no"):
        diffusion.grown(new, small)
    with pytest.raises(ValueError, match="would be"):
        diffusion.grown(old, replace(small, map_channels=2))


def test_noisy_times_come_more_often() -> None:
    generator = torch.Generator().manual_seed(0)
    t = sample_t("logit_normal", 4000, 1000, generator, mean=0.8)
    assert t.div(1000).logit().mean().item() == pytest.approx(0.8, abs=0.05)


def commands_of(target: str, *variables: str) -> list[list[str]]:
    """What `make TARGET` runs from nothing, less the program's name and the rendering of the art."""
    words = ["make", "-Bn", "-C", Path(__file__).parents[1], target, *variables]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = [line.split()[1:] for line in said.splitlines() if "/pellucid " in line]
    return [each for each in found if each[0] != "data"]


def test_the_recipe_of_the_model_that_ships(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of the Makefile one after the other, as SMALL=1 has them, on very small art."""
    *train, evaluate = commands_of("emoji-model", "SMALL=1", "DEVICE=cpu")
    assert evaluate[0] == "evaluate" and {each[0] for each in train} == {"train"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    save_art(tmp_path / "runs/art64.npz", 32)
    save_art(tmp_path / "runs/art256.npz", 128)
    for command in train:
        status, _, err = call(*(word for word in command if not word.startswith("packages=")))
        assert status == 0, (command, err)
    made = checkpoints.load(tmp_path / "runs/small/emoji.safetensors")
    shipped = checkpoints.load(device="meta", dtype=None)
    assert (
        made.second_stage is not None
        and shipped.second_stage is not None
        and made.lexicon is not None
    )
    assert made.second_stage.config == shipped.second_stage.config
    assert made.vae.config.shortcut_kernel == shipped.vae.config.shortcut_kernel == 3
    ours, theirs = made.defaults, shipped.defaults
    assert (ours.steps, ours.guidance, ours.sampler) == (8, 3, theirs.sampler)
    assert (theirs.steps, theirs.guidance, ours.width) == (8, 3, 128)
    *_, last = generate(made, Request(prompt="a frog", seed=1, steps=2))
    assert last.images is not None and last.images[0].size == (128, 128)


def test_the_recipe_for_a_gpu_has_the_same_parts() -> None:
    small, gpu = (commands_of(f"emoji-model{end}", "SMALL=1") for end in ("", "-gpu"))
    names = {"runs/small": "runs/gpu-small", "art64": "art128", "art256": "art512"}

    def renamed(word: str) -> str:
        for old, new in names.items():
            word = word.replace(old, new)
        return word

    assert [list(map(renamed, command)) for command in small] == gpu
    wide = {word for command in commands_of("emoji-model-gpu") for word in command}
    assert {"channels=192,384,384", "art=runs/art512.npz"} <= wide
