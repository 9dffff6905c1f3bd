"""The recipe of the small model: its pool, its places, its pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pellucid.backbones.unet import UNet, UNetConfig
from pellucid.data import scenes
from pellucid.data.emoji import STYLES, Concept, EmojiArt
from pellucid.diffusion import Conditioning
from pellucid.recipes import decoder, diffusion, gpu, pairs, pool, text
from pellucid.recipes.autoencoder import CONFIG
from pellucid.recipes.words import lexicon
from pellucid.tokenizer import Tokenizer
from pellucid.vae import VAE, VAEConfig

NAMES = ("cat", "dog", "fox", "owl", "key", "car", "cup", "hat")


@pytest.fixture(scope="module")
def art() -> EmojiArt:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (len(NAMES), len(STYLES), 64, 64, 4), dtype=np.uint8)
    return EmojiArt([Concept("🐱", (name,)) for name in NAMES], pixels)


def test_a_pool_is_read_back_as_it_was_drawn(art: EmojiArt, tmp_path: Path) -> None:
    mix = scenes.SceneMix()
    pool.make(art, tmp_path / "a", 20, mix, 5, range(len(NAMES)))
    told, drawn = pool.read(tmp_path / "a"), pool.pixels(tmp_path / "a")
    assert len(told) == len(drawn) == 20
    first = (tmp_path / "a/pixels.npy").stat().st_mtime_ns
    pool.make(art, tmp_path / "a", 20, mix, 5, range(len(NAMES)))  # it is complete
    assert (tmp_path / "a/pixels.npy").stat().st_mtime_ns == first
    pool.make(art, tmp_path / "b", 20, mix, 5, range(len(NAMES)))
    assert pool.read(tmp_path / "b") == told and (pool.pixels(tmp_path / "b") == drawn).all()
    with pytest.raises(ValueError, match="no scenes"):
        pool.read(tmp_path / "c")


def test_columns_are_the_tokens_of_the_words() -> None:
    captions = [f"a {name} and a {other}" for name in NAMES for other in NAMES]
    tokenizer = Tokenizer.train(captions, 400, text.CONTEXT)
    caption = "a cat and a dog"
    scene = {
        "caption": caption,
        "places": [[2, 5, [0, 0, 0.5, 1]], [12, 15, [0.5, 0, 1, 1]]],
    }
    columns, boxes = diffusion.places([scene, {"caption": "a key", "places": []}], tokenizer)
    pieces = ["", *tokenizer.tokens(caption)]
    for i, word in enumerate(("cat", "dog")):
        assert "".join(p for p, c in zip(pieces, columns[0, i], strict=False) if c) == word
    assert not columns[0, 2:].any() and not columns[1].any()
    assert boxes[0, 1].tolist() == [0.5, 0, 1, 1]


def test_the_rate_rises_stays_and_falls() -> None:
    here = Path(".")
    options = diffusion.Options((), here, here, warmup=10, decay=(100, 200))
    rates = [diffusion.rate_at(options, step) for step in (0, 9, 50, 100, 150, 200, 300)]
    assert rates == pytest.approx([1e-4, 1e-3, 1e-3, 1e-3, 5e-4, 0, 0])


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


def test_no_two_pictures_of_a_batch_begin_with_the_same_thing() -> None:
    by_concept = [np.array([3 * c, 3 * c + 1, 3 * c + 2]) for c in range(8)]
    index = text.batch_of(by_concept, np.random.default_rng(0), 6)
    assert len({i // 3 for i in index.tolist()}) == 6


def test_the_autoencoder_begins_as_principal_components() -> None:
    torch.manual_seed(0)
    vae = VAE(CONFIG)
    n = 3 * CONFIG.downsample**2
    axes = torch.linalg.qr(torch.randn(n, n))[0][:8]
    mean = torch.randn(n)
    vae.set_shortcut(axes, axes.T, mean)
    patches = torch.randn(2, 8) @ axes + mean
    pixels = patches.view(2, 3, 4, 4).repeat(1, 1, 4, 4)
    decoded = vae.decode(vae.encode(pixels).mode())
    torch.testing.assert_close(decoded, pixels, rtol=1e-3, atol=1e-3)


def test_pairs_are_aligned_and_far_ones_are_left_out(art: EmojiArt, tmp_path: Path) -> None:
    large_art = EmojiArt(art.concepts, art.pixels.repeat(4, 2).repeat(4, 3))

    def half_bad(
        small: np.ndarray, captions: Sequence[str], rng: np.random.Generator
    ) -> np.ndarray:
        changed = small.copy()
        changed[::2] = 255 - changed[::2]
        return changed

    mix = scenes.SceneMix(play=0.5)
    made = pairs.make(tmp_path / "p", large_art, 6, mix, 1, range(len(NAMES)), half_bad, batch=4)
    small, large = (np.load(tmp_path / "p" / f"{n}.npy") for n in ("small", "large"))
    assert made == len(small) == len(large) == 6
    for one, two in zip(small, large, strict=True):
        assert (one == pairs.box_mean(two, 4)).all()


def test_the_lexicon_says_what_was_learnt(art: EmojiArt, tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text('[{"emoji": "🐱", "tags": ["pet", "cat"]}]', encoding="utf-8")
    found = lexicon(art, [0, 2], file)
    assert [e.names for e in found.entries] == [("cat",), ("fox",)]
    assert found.entries[0].tags == ("pet",)
    assert {"red", "flat", "three"} <= found.known


def test_a_seamless_decoder_begins_as_the_old_one() -> None:
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
    new = decoder.seamless(old).eval()
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    latents = old.to_latents(pixels)
    torch.testing.assert_close(new.to_latents(pixels), latents)
    torch.testing.assert_close(new.to_pixels(latents), old.to_pixels(latents))


def test_pieces_are_small_and_come_back_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "PIECE", 1000)
    state = {f"layer.{i}": torch.randn(10, 20 + i) for i in range(7)}
    paths = gpu.save_pieces(tmp_path, state, {"config": {"channels": [1, 2]}, "steps": 3})
    assert len(paths) > 3
    again, about = gpu.load_pieces(tmp_path)
    assert about == {"config": {"channels": [1, 2]}, "steps": 3}
    assert again.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(again[name], value, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="no pieces"):
        gpu.load_pieces(tmp_path / "none")
