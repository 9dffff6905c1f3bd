"""The U-Net: equal to diffusers' UNet2DConditionModel, and its additions by their definitions."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.backbones.unet import SD15, SD21, SDXL, UNet, UNetConfig, init_for_training
from pellucid.diffusion import Conditioning
from pellucid.nn import Attention, attend, sinusoid

# The published shapes, thinner.
THIN = {
    "sd15": replace(
        SD15, block_out_channels=(32, 64, 96, 96), heads=(4,) * 4, cross_attention_dim=24
    ),
    "sd21": replace(
        SD21, block_out_channels=(32, 64, 96, 96), heads=(2, 4, 6, 6), cross_attention_dim=24
    ),
    "sdxl": replace(
        SDXL,
        block_out_channels=(32, 64, 96),
        transformer_layers=(0, 2, 3),
        mid_transformer_layers=3,
        heads=(2, 4, 6),
        cross_attention_dim=24,
        pooled_dim=20,
    ),
}
TINY = UNetConfig(
    in_channels=3,
    out_channels=5,
    block_out_channels=(16, 32),
    layers_per_block=1,
    transformer_layers=(0, 1),
    heads=(2, 4),
    cross_attention_dim=12,
    use_linear_projection=True,
    norm_groups=8,
    pooled_dim=10,
)
MAPPED = replace(TINY, map_channels=6, map_size=8)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor) -> None:
    assert float((a - b).abs().max() / b.abs().max()) < 1e-5


def conditioning(config: UNetConfig, batch: int = 2) -> Conditioning:
    sizes = torch.tensor([[512.0, 768, 0, 16, 1024, 1024]]).repeat(batch, 1)
    return Conditioning(
        noise(batch, 7, config.cross_attention_dim, seed=1),
        noise(batch, config.pooled_dim, seed=2) if config.pooled_dim > 0 else None,
        sizes if config.size_conditions else None,
    )


def reference(config: UNetConfig):
    diffusers = pytest.importorskip("diffusers")
    crossed = [depth > 0 for depth in config.transformer_layers]
    return diffusers.UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=[("CrossAttnDownBlock2D" if c else "DownBlock2D") for c in crossed],
        up_block_types=[("CrossAttnUpBlock2D" if c else "UpBlock2D") for c in crossed[::-1]],
        # diffusers takes the depth of the middle from the last level, here always at least 1.
        transformer_layers_per_block=[max(d, 1) for d in config.transformer_layers],
        attention_head_dim=config.heads,  # the number of heads, for all its name
        cross_attention_dim=config.cross_attention_dim,
        use_linear_projection=config.use_linear_projection,
        norm_num_groups=config.norm_groups,
        norm_eps=config.norm_eps,
        addition_embed_type="text_time" if config.size_conditions else None,
        addition_time_embed_dim=256 if config.size_conditions else None,
        projection_class_embeddings_input_dim=(
            config.pooled_dim + 6 * 256 if config.size_conditions else None
        ),
    ).eval()


@pytest.mark.parametrize("name", THIN)
@pytest.mark.parametrize("size", [(16, 16), (12, 20)], ids=["square", "odd_levels"])
@torch.no_grad()
def test_equals_diffusers(name: str, size: tuple[int, int]) -> None:
    config = THIN[name]
    torch.manual_seed(0)
    theirs, ours = reference(config), UNet(config)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, t, cond = noise(2, 4, *size), torch.tensor([3.0, 761.5]), conditioning(config)
    extra = {"text_embeds": cond.pooled, "time_ids": cond.sizes} if config.size_conditions else None
    expected = theirs(x, t, cond.tokens, added_cond_kwargs=extra).sample
    close(ours(x, t, cond), expected)
    ours.to(memory_format=torch.channels_last)
    close(ours(x, t, cond), expected)


@pytest.mark.parametrize(
    ("config", "count"),
    [(SD15, 859_520_964), (SD21, 865_910_724), (SDXL, 2_567_463_684)],
    ids=["sd15", "sd21", "sdxl"],
)
def test_published_size_and_names(config: UNetConfig, count: int) -> None:
    with torch.device("meta"):
        ours, theirs = UNet(config), reference(config)
    shapes = {name: p.shape for name, p in ours.state_dict().items()}
    assert shapes == {name: p.shape for name, p in theirs.state_dict().items()}
    assert sum(p.numel() for p in ours.parameters()) == count


def test_sinusoid() -> None:
    waves = sinusoid(torch.tensor([0.0, 3.5]), 4)
    expected = torch.tensor([3.5, 0.035])
    torch.testing.assert_close(waves[0], torch.tensor([1.0, 1, 0, 0]))
    torch.testing.assert_close(waves[1], torch.cat([expected.cos(), expected.sin()]))
    with pytest.raises(ValueError, match="even"):
        sinusoid(torch.zeros(1), 3)


def test_recorded_map_times_values_is_the_fused_attention() -> None:
    q, k, v = noise(2, 3, 16, 8), noise(2, 3, 5, 8, seed=1), noise(2, 3, 5, 8, seed=2)
    maps: list[Tensor] = []
    out = attend(q, k, v, maps)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(maps[0] @ v, F.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(2, 3, 16))
    with pytest.raises(ValueError, match="heads"):
        Attention(10, 10, 3)


@torch.no_grad()
def test_recording_changes_nothing_but_takes_every_map() -> None:
    torch.manual_seed(0)
    config = replace(THIN["sdxl"], transformer_layers=(0, 1, 2), mid_transformer_layers=2)
    unet, cond = UNet(config), conditioning(config)
    x, t = noise(2, 4, 8, 12), torch.tensor([10.0, 900.0])
    maps: list[Tensor] = []
    close(unet(x, t, cond, maps), unet(x, t, cond))
    # Level 1 has 2 + 3 transformers of 1 block, level 2 has 2 + 3 of 2; the middle 1 of 2.
    shapes = [(2, 4, 4, 6, 7)] * 2 + [(2, 6, 2, 3, 7)] * (4 + 2 + 6) + [(2, 4, 4, 6, 7)] * 3
    assert [tuple(weights.shape) for weights in maps] == shapes
    for weights in maps:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@torch.no_grad()
def test_every_condition_is_heard() -> None:
    torch.manual_seed(0)
    for config in (MAPPED, THIN["sdxl"]):
        unet, cond = UNet(config), conditioning(config)
        x, t = noise(2, config.in_channels, 8, 8), torch.tensor([10.0, 900.0])
        out = unet(x, t, cond)
        assert out.shape == (2, config.out_channels, 8, 8)
        assert not torch.allclose(out, unet(x, t + 50, cond), atol=1e-5)
        for name in ("tokens", "pooled", "sizes"):
            if (value := getattr(cond, name)) is not None:
                changed = replace(cond, **{name: value.flip(-1)})
                assert not torch.allclose(out, unet(x, t, changed), atol=1e-5)


@torch.no_grad()
def test_pooled_text_is_added_to_the_time() -> None:
    torch.manual_seed(0)
    unet, cond, t = UNet(TINY), conditioning(TINY), torch.tensor([10.0, 900.0])
    assert cond.pooled is not None
    expected = unet.time_embedding(sinusoid(t, 16)) + unet.add_embedding(cond.pooled)
    torch.testing.assert_close(unet.embed_time(t, cond, torch.float32), expected)


@torch.no_grad()
def test_text_as_a_map() -> None:
    torch.manual_seed(0)
    unet, cond = UNet(MAPPED), conditioning(MAPPED)
    assert cond.pooled is not None
    drawn = unet.map_embedding(cond.pooled).view(2, 6, 8, 8)
    torch.testing.assert_close(unet.draw_map(noise(2, 3, 8, 8), cond), drawn)
    larger = unet.draw_map(noise(2, 3, 16, 12), cond)
    assert larger.shape == (2, 6, 16, 12)
    torch.testing.assert_close(larger[:, :, 0, 0], drawn[:, :, 0, 0])
    # The map goes behind the input's own channels: without its weights the input is alone.
    plain = UNet(TINY)
    weights = {k: v for k, v in unet.state_dict().items() if not k.startswith("map_embedding")}
    weights["conv_in.weight"] = weights["conv_in.weight"][:, :3]
    plain.load_state_dict(weights, strict=True)
    unet.conv_in.weight[:, 3:] = 0
    x, t = noise(2, 3, 8, 8), torch.tensor([10.0, 900.0])
    close(unet(x, t, cond), plain(x, t, cond))


def test_width_of_the_network_that_makes_the_map() -> None:
    wide = UNet(replace(MAPPED, map_width=40))
    assert [layer.weight.shape for layer in wide.map_embedding[::2]] == [(40, 10), (6 * 64, 40)]


@torch.no_grad()
def test_patches_are_channels_inside() -> None:
    """With 2x2 patches it computes what the plain network does on folded latents."""
    config = replace(TINY, patch_size=2)
    torch.manual_seed(0)
    folded = UNet(config)
    plain = UNet(replace(TINY, in_channels=12, out_channels=20))
    plain.load_state_dict(folded.state_dict())
    x, t, cond = noise(2, 3, 16, 8), torch.tensor([10.0, 900.0]), conditioning(TINY)
    out = folded(x, t, cond)
    assert out.shape == (2, 5, 16, 8)
    close(out, F.pixel_shuffle(plain(F.pixel_unshuffle(x, 2), t, cond), 2))
    with pytest.raises(ValueError, match="patch_size must be at least 1, got 0"):
        replace(TINY, patch_size=0)


def test_training_starts_at_zero_and_every_parameter_learns() -> None:
    torch.manual_seed(0)
    unet, cond = UNet(MAPPED), conditioning(MAPPED)
    init_for_training(unet)
    x, t = noise(2, 3, 8, 8), torch.tensor([10.0, 900.0])
    assert not unet(x, t, cond).any()
    target, losses = noise(2, 5, 8, 8, seed=4), []
    optimizer = torch.optim.Adam(unet.parameters(), 3e-3)
    for _ in range(8):
        loss = (unet(x, t, cond) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    # The output's zeros hold back the rest for a step, theirs what is inside for another.
    assert all(p.grad is not None and p.grad.any() for p in unet.parameters())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float64, 1e-4)])
@torch.no_grad()
def test_other_types(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    config = replace(THIN["sdxl"], transformer_layers=(0, 1, 1), mid_transformer_layers=1)
    unet, cond = UNet(config), conditioning(config)
    assert cond.pooled is not None
    x, t = noise(2, 4, 8, 8), torch.tensor([10.0, 900.0])
    expected = unet(x, t, cond)
    typed = replace(cond, tokens=cond.tokens.to(dtype), pooled=cond.pooled.to(dtype))
    out = unet.to(dtype)(x.to(dtype), t, typed)
    assert out.dtype == dtype
    assert float((out - expected).abs().max() / expected.abs().max()) < tolerance


def test_errors() -> None:
    with pytest.raises(ValueError, match="heads has 1 entries"):
        replace(TINY, heads=(2,))
    with pytest.raises(ValueError, match="pooled_dim is 0"):
        replace(MAPPED, pooled_dim=0)
    x, t = noise(2, 4, 8, 8), torch.tensor([10.0, 900.0])
    cond = conditioning(THIN["sdxl"])
    with pytest.raises(ValueError, match="no pooled text"):
        UNet(MAPPED)(x[:, :3], t, replace(conditioning(MAPPED), pooled=None))
    with pytest.raises(ValueError, match="no sizes"):
        UNet(THIN["sdxl"])(x, t, replace(cond, sizes=None))
