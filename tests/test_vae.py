"""The autoencoder: equal to diffusers' AutoencoderKL, and its own parts by their definitions."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid import checkpoints
from pellucid.train import adversary
from pellucid.vae import SD_VAE, SDXL_VAE, VAE, Posterior, VAEConfig, deblock

SMALL = VAEConfig(block_out_channels=(16, 32), layers_per_block=1, norm_groups=8)
LINEAR = replace(SMALL, latent_channels=12, patch_size=2, mid_attention=False, shortcut=True)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor) -> None:
    assert float((a - b).abs().max() / b.abs().max()) < 1e-5


def reference(config: VAEConfig):
    diffusers = pytest.importorskip("diffusers")
    levels = len(config.block_out_channels)
    return diffusers.AutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        use_quant_conv=config.use_quant_conv,
        use_post_quant_conv=config.use_quant_conv,
        mid_block_add_attention=config.mid_attention,
    ).eval()


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        replace(SMALL, block_out_channels=(16, 24, 32), layers_per_block=2),
        replace(SMALL, use_quant_conv=False, latent_channels=6),
        replace(SMALL, mid_attention=False),
    ],
    ids=["small", "three_levels", "no_quant_conv", "no_attention"],
)
@torch.no_grad()
def test_equals_diffusers(config: VAEConfig) -> None:
    torch.manual_seed(0)
    theirs, ours = reference(config), VAE(config)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    pixels = noise(2, 3, 24, 16)
    posterior, expected = ours.encode(pixels), theirs.encode(pixels).latent_dist
    close(posterior.mean, expected.mean)
    close(posterior.logvar, expected.logvar)
    close(posterior.kl(), expected.kl())
    close(ours.decode(posterior.mode()), theirs.decode(expected.mode()).sample)
    # And back: what is written here, diffusers reads.
    again = reference(config)
    again.load_state_dict(VAE(config).state_dict(), strict=True)


@pytest.mark.parametrize("config", [SD_VAE, SDXL_VAE])
def test_published_size(config: VAEConfig) -> None:
    with torch.device("meta"):
        vae = VAE(config)
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    assert config.downsample == 8


@torch.no_grad()
def test_memory_format_does_not_change_the_values() -> None:
    torch.manual_seed(0)
    vae, pixels = VAE(SMALL), noise(1, 3, 16, 16)
    expected = vae.decode(vae.encode(pixels).mode())
    vae.to(memory_format=torch.channels_last)
    close(vae.decode(vae.encode(pixels).mode()), expected)


@torch.no_grad()
def test_scale_and_shift() -> None:
    torch.manual_seed(0)
    vae = VAE(replace(SMALL, scaling_factor=0.5, shift_factor=0.25))
    pixels = noise(1, 3, 16, 16)
    z = vae.encode(pixels).mode()
    torch.testing.assert_close(vae.to_latents(pixels), (z - 0.25) * 0.5)
    torch.testing.assert_close(vae.to_pixels(vae.to_latents(pixels)), vae.decode(z))
    sampled = vae.to_latents(pixels, torch.Generator().manual_seed(3))
    again = vae.encode(pixels).sample(torch.Generator().manual_seed(3))
    torch.testing.assert_close(sampled, (again - 0.25) * 0.5)
    assert not torch.equal(sampled, vae.to_latents(pixels))


def test_posterior() -> None:
    mean, logvar = noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1)
    normal = torch.distributions.Normal(mean, (logvar / 2).exp())
    unit = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = torch.distributions.kl_divergence(normal, unit).sum((1, 2, 3))
    torch.testing.assert_close(Posterior(mean, logvar).kl(), expected)

    wide = Posterior(torch.full((1, 4, 64, 64), 2.0), torch.full((1, 4, 64, 64), math.log(9)))
    drawn = wide.sample(torch.Generator().manual_seed(0))
    assert abs(float(drawn.mean()) - 2) < 0.1
    assert abs(float(drawn.std()) - 3) < 0.1
    assert Posterior(mean, logvar + 1000).sample().isfinite().all()


@torch.no_grad()
def test_shortcut_is_a_linear_code_of_patches() -> None:
    torch.manual_seed(0)
    vae, f = VAE(LINEAR), LINEAR.downsample
    n = 3 * f * f
    encode, decode, mean = noise(12, n) / 7, noise(n, 12, seed=1) / 7, noise(n, seed=2)
    vae.set_shortcut(encode, decode, mean)
    pixels = noise(2, 3, 8, 12)
    patches = F.unfold(pixels, f, stride=f).transpose(1, 2)  # (B, patches, n)
    z = (patches - mean) @ encode.T
    posterior = vae.encode(pixels)
    torch.testing.assert_close(posterior.mean.flatten(2).transpose(1, 2), z)
    torch.testing.assert_close(posterior.logvar, torch.full_like(posterior.logvar, -6.0))
    coded = F.unfold(vae.decode(posterior.mode()), f, stride=f).transpose(1, 2)
    torch.testing.assert_close(coded, z @ decode.T + mean)


def test_a_step_of_training_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    vae, pixels = VAE(LINEAR), noise(2, 3, 8, 8)
    posterior = vae.encode(pixels)
    loss = (vae.decode(posterior.sample()) - pixels).abs().mean(dim=(1, 2, 3)) + posterior.kl()
    loss.mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in vae.parameters())


@pytest.mark.parametrize("shape", [(1, 3, 15, 16), (1, 3, 16, 15), (1, 4, 16, 16), (3, 16, 16)])
def test_pixels_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="pixels"):
        VAE(SMALL).encode(torch.zeros(shape))


@torch.no_grad()
def test_the_linear_decoder_may_read_neighbours() -> None:
    """It starts as the code of single patches, and has no seams once it learns from neighbours."""
    encode, decode, mean = noise(12, 48), noise(48, 12, seed=1), noise(48, seed=2)
    single, wide = VAE(LINEAR), VAE(replace(LINEAR, shortcut_kernel=3))
    for vae in (single, wide):
        vae.set_shortcut(encode, decode, mean)
    z = noise(1, 12, 4, 4)
    close(wide.decode(z), single.decode(z))
    changed = z.clone()
    changed[:, :, 0, 0] += 1
    assert torch.equal(wide.decode(changed)[..., 4:], wide.decode(z)[..., 4:])
    torch.nn.init.normal_(wide.decoder_shortcut.weight)
    seen = (wide.decode(changed) - wide.decode(z)).abs().sum(1)[0]
    assert (seen[:8, :8] > 0).all() and seen[8:].max() == 0 and seen[:, 8:].max() == 0
    with pytest.raises(ValueError, match="shortcut_kernel must be an odd number, got 2"):
        replace(LINEAR, shortcut_kernel=2)


def test_shortcut_errors() -> None:
    with pytest.raises(ValueError, match="shortcut=False"):
        VAE(SMALL).set_shortcut(noise(4, 12), noise(12, 4), noise(12))
    with pytest.raises(ValueError, match="shapes"):
        VAE(LINEAR).set_shortcut(noise(4, 12), noise(12, 4), noise(12))


def test_discriminator_learns_to_tell() -> None:
    torch.manual_seed(0)
    discriminator = adversary.PatchDiscriminator(width=8)
    real, fake = noise(4, 3, 32, 32), F.avg_pool2d(noise(4, 3, 32, 32, seed=1), 3, 1, 1)
    assert discriminator(real).shape == (4, 1, 2, 2)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3)
    for _ in range(20):
        loss = adversary.discriminator_loss(discriminator(real), discriminator(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert discriminator(real).mean() > discriminator(fake).mean() + 1
        # Each picture is scored alone.
        torch.testing.assert_close(discriminator(real[:1]), discriminator(real)[:1])


def test_hinge_losses() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert float(adversary.discriminator_loss(real, fake)) == pytest.approx(0.5 * (0.25 + 0.5))
    assert float(adversary.generator_loss(fake)) == pytest.approx(1.5)


def test_feature_loss() -> None:
    a, b = noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1)

    def two_layers(x: Tensor) -> list[Tensor]:
        return [x, F.avg_pool2d(x, 2)]

    assert adversary.feature_loss(two_layers, a, a).abs().max() < 1e-6
    # Brightness does not count, only the direction of a place's vector.
    assert adversary.feature_loss(two_layers, a, 3 * a).abs().max() < 1e-6
    expected = 2 - 2 * F.cosine_similarity(a, b, dim=1).mean((1, 2))
    torch.testing.assert_close(adversary.feature_loss(lambda x: [x], a, b), expected)
    assert (adversary.feature_loss(two_layers, a, b) > expected).all()


THREE = replace(SMALL, block_out_channels=(8, 16, 24), layers_per_block=2)


@pytest.mark.parametrize("tile_size", [1, 100, 1000])
@pytest.mark.parametrize(
    "config", [THREE, replace(LINEAR, block_out_channels=(8, 16))], ids=["three_levels", "linear"]
)
@torch.no_grad()
def test_tiles_are_the_whole(config: VAEConfig, tile_size: int) -> None:
    """Norms and attention see the whole picture, so there is no seam to look for."""
    torch.manual_seed(0)
    vae, f = VAE(config).double(), config.downsample
    for parameter in vae.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    pixels = noise(2, 3, 10 * f, 7 * f).double()
    # Regions of different contrast: what one tile alone would measure is not the whole.
    pixels[:, :, : 5 * f] *= 0.1
    pixels[:, :, :, : 3 * f] += 1
    posterior, expected = vae.encode(pixels, tile_size), vae.encode(pixels)
    torch.testing.assert_close(posterior.mean, expected.mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(posterior.logvar, expected.logvar, rtol=0, atol=1e-10)
    z = expected.mode()
    torch.testing.assert_close(vae.decode(z, tile_size), vae.decode(z), rtol=0, atol=1e-10)
    latents = vae.to_latents(pixels, tile_size=tile_size)
    torch.testing.assert_close(latents, vae.to_latents(pixels), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        vae.to_pixels(latents, tile_size), vae.to_pixels(latents), rtol=0, atol=1e-10
    )


@torch.no_grad()
def test_tiles_of_the_shipped_model() -> None:
    """Within a thousandth of a step of 255, at the borders of the tiles as elsewhere."""
    vae = checkpoints.load(checkpoints.embedded()).vae
    ramp = torch.linspace(-1, 1, 192)
    pixels = torch.stack(
        [ramp[:, None] * ramp, ramp.expand(192, -1), (9 * ramp).sin()[:, None] * ramp]
    )
    latents = vae.to_latents(pixels[None])
    close(vae.to_latents(pixels[None], tile_size=500), latents)
    whole, parts = vae.to_pixels(latents), vae.to_pixels(latents, tile_size=500)
    assert float((whole - parts).abs().max()) < 1e-3 * 2 / 255


def test_working_bytes_grow_with_the_picture() -> None:
    with torch.device("meta"):
        vae = VAE(SD_VAE)
    assert vae.working_bytes(512, 512) == 4 * 256 * 512 * 512 * 4
    assert vae.half().working_bytes(512, 256) == 4 * 256 * 512 * 256 * 2


def test_deblocking_halves_small_steps_on_the_grid_and_keeps_the_rest() -> None:
    ramp = torch.linspace(-0.5, 0.5, 24).expand(1, 3, 24, 24)
    assert torch.allclose(deblock(ramp, 8, 0.15), ramp)
    faint, outline = ramp.clone(), ramp.clone()
    faint[..., 8:] += 0.1
    outline[..., 8:] += 0.5
    inside = ramp.clone()
    inside[..., 12:] += 0.1
    assert torch.allclose(deblock(outline, 8, 0.15), outline)
    assert torch.allclose(deblock(inside, 8, 0.15), inside)
    mended = deblock(faint, 8, 0.15)
    assert torch.allclose((mended - faint)[0, 0, 5, 6:10], torch.tensor([0, 0.025, -0.025, 0]))
    turned = deblock(faint.mT, 8, 0.15)
    assert torch.allclose(turned, mended.mT)


def test_a_decoder_deblocks_if_its_config_says_so() -> None:
    vae = VAE(SMALL).eval()
    z = torch.randn(1, SMALL.latent_channels, 4, 4)
    with torch.no_grad():
        plain = vae.decode(z)
        vae.config = replace(SMALL, deblock=0.5)
        assert torch.equal(vae.decode(z), deblock(plain, SMALL.downsample, 0.5))
        assert not torch.equal(vae.decode(z), plain)
    with pytest.raises(ValueError, match="deblock must not be negative, got -1"):
        replace(SMALL, deblock=-1)
