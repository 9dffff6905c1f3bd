"""Quick looks at latents."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from pellucid import checkpoints, preview
from pellucid.checkpoints import families
from pellucid.model import Model
from pellucid.pipeline import generate
from pellucid.request import Request
from pellucid.tiny_vae import TinyVAE, TinyVAEConfig
from pellucid.vae import SD_VAE, SDXL_VAE, VAE, VAEConfig

THIN = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_groups": 4}


@pytest.fixture
def slow(model: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The tests' model, as if its decoder were a large one."""
    monkeypatch.setattr(preview, "QUICK_PARAMETERS", 0)
    return replace(model, latents=families.latent_space(model.vae.config))


def with_vae(vae: VAE) -> Any:
    """What `colors_of` needs of a model: its autoencoder, and what is known of that one's latents."""
    return SimpleNamespace(vae=vae, latents=families.latent_space(vae.config))


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and ImageChops.difference(a, b).getbbox() is None


def test_colours_are_a_matrix() -> None:
    colours = preview.colors_of(with_vae(VAE(replace(SD_VAE, **THIN))))
    assert colours is not None
    latents = torch.zeros(1, 4, 2, 3)
    latents[0, 2, 1, 0] = 2.0
    pixels = colours(latents)
    assert pixels.shape == (1, 3, 2, 3)
    assert torch.allclose(pixels[0, :, 1, 0], torch.tensor([-0.6384, 0.5026, 0.4206]))
    assert float(pixels.abs().sum()) == pytest.approx(1.5616)


@pytest.mark.parametrize(
    ("config", "known"),
    [
        (SD_VAE, True),
        (SDXL_VAE, True),
        (VAEConfig(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609), True),
        (VAEConfig(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159), False),
    ],
    ids=["sd1", "sdxl", "sd3", "flux"],
)
def test_which_colours_are_known(config: VAEConfig, known: bool) -> None:
    colours = preview.colors_of(with_vae(VAE(replace(config, **THIN))))
    assert (colours is not None) is known
    assert colours is None or colours.factors.shape == (config.latent_channels, 3)


def test_a_linear_code_knows_its_own_colours() -> None:
    config = VAEConfig(
        latent_channels=5,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_groups=4,
        scaling_factor=0.7,
        shift_factor=0.3,
        shortcut=True,
    )
    vae = VAE(config)
    colours = preview.colors_of(with_vae(vae))
    assert colours is not None
    for layer in (vae.decoder.conv_out,):  # the linear code alone
        for parameter in layer.parameters():
            parameter.data.zero_()
    latents = torch.randn(2, 5, 3, 4)
    with torch.no_grad():
        means = torch.nn.functional.avg_pool2d(vae.to_pixels(latents), config.downsample)
    assert torch.allclose(colours(latents), means, atol=1e-6)


@torch.no_grad()
def test_a_linear_code_that_reads_neighbours_knows_the_colour_of_a_flat_picture() -> None:
    vae = VAE(
        VAEConfig(
            latent_channels=5,
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_groups=4,
            shortcut=True,
            shortcut_kernel=3,
        )
    )
    colours = preview.colors_of(with_vae(vae))
    assert colours is not None
    for parameter in vae.decoder.conv_out.parameters():
        parameter.data.zero_()
    latents = torch.randn(1, 5, 1, 1).expand(1, 5, 3, 3)
    means = torch.nn.functional.avg_pool2d(vae.to_pixels(latents), vae.config.downsample)
    assert torch.allclose(colours(latents)[..., 1, 1], means[..., 1, 1], atol=1e-5)


@torch.no_grad()
def test_the_embedded_models_colours_are_those_of_its_pictures() -> None:
    model = checkpoints.load()
    *_, done = generate(model, Request(prompt="a red apple", seed=1, count=2, steps=6))
    colours = preview.colors_of(model)
    assert colours is not None
    means = torch.nn.functional.avg_pool2d(model.vae.to_pixels(done.x), 8)
    assert means.std() > 0.3
    # The shortcut of its decoder reads the neighbours of a position as well, which this leaves out.
    assert float((colours(done.x) - means).square().mean().sqrt()) < 0.03


def test_what_auto_means(slow: Model, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = torch.randn(1, 4, 8, 8)

    def shows(model: Model, how: str) -> bool:
        return same(preview.preview(model, latents)[0], preview.preview(model, latents, how)[0])

    assert shows(slow, "linear") and not shows(slow, "vae")
    assert preview.preview(slow, latents)[0].size == (16, 16)
    tiny = replace(slow, tiny_vae=TinyVAE(replace(TinyVAEConfig(), width=8)).eval())
    assert shows(tiny, "tiny") and not shows(tiny, "linear")
    other = replace(slow.vae.config, scaling_factor=0.9)
    unknown = replace(slow, vae=VAE(other), latents=families.latent_space(other))
    assert shows(unknown, "vae")
    with pytest.raises(ValueError, match="colors of the latents of tiny are not known"):
        preview.preview(unknown, latents, "linear")
    monkeypatch.undo()
    assert shows(model, "vae") and shows(model, "tiny")  # quick as it is


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: preview.preview(m, torch.zeros(1, 4, 8, 8), "tiney"), "nearest first: tiny"),
        (lambda m: preview.preview(m, torch.full((1, 4, 8, 8), torch.nan)), "not finite"),
        (lambda m: preview.preview(m, torch.zeros(1, 4, 8, 8), "tiny"), "taesd_decoder"),
        (lambda m: list(generate(m, Request(decoder="tiny"))), "given as tiny_vae"),
    ],
)
def test_bad_input(slow: Model, call: Callable[[Model], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(slow)
