"""The transformer of SD3: equal to diffusers' SD3Transformer2DModel; the seam that it stands at."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from pellucid import checkpoints, samplers
from pellucid.backbones.mmdit import SD3_MEDIUM, MMDiT, MMDiTConfig
from pellucid.diffusion import Conditioning
from pellucid.model import Model
from pellucid.pipeline import generate
from pellucid.request import Request
from pellucid.schedule import Schedule
from references import SD35_LARGE, SD35_MEDIUM

# The published shapes, thinner.
THIN = {
    name: replace(
        config,
        layers=3,
        heads=2,
        head_width=16,
        cross_attention_dim=24,
        pooled_dim=20,
        sample_size=16,
        max_patches=12,
        dual_attention_layers=config.dual_attention_layers[:2],
    )
    for name, config in (("sd3", SD3_MEDIUM), ("sd35", SD35_MEDIUM))
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditioning(config: MMDiTConfig) -> Conditioning:
    tokens = noise(2, 9, config.cross_attention_dim, seed=1)
    return Conditioning(tokens, noise(2, config.pooled_dim, seed=2))


def reference(config: MMDiTConfig):
    diffusers = pytest.importorskip("diffusers")
    return diffusers.SD3Transformer2DModel(
        sample_size=config.sample_size,
        patch_size=config.patch_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=config.layers,
        num_attention_heads=config.heads,
        attention_head_dim=config.head_width,
        joint_attention_dim=config.cross_attention_dim,
        caption_projection_dim=config.width,
        pooled_projection_dim=config.pooled_dim,
        pos_embed_max_size=config.max_patches,
        dual_attention_layers=config.dual_attention_layers,
        qk_norm="rms_norm" if config.qk_norm else None,
    ).eval()


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[MMDiT, torch.nn.Module]]:
    """Ours and theirs of each shape, with the same random weights."""
    made = {}
    for name, config in THIN.items():
        theirs, ours = reference(config), MMDiT(config).eval()
        assert torch.equal(ours.pos_embed.pos_embed, theirs.pos_embed.pos_embed)
        for parameter in theirs.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        made[name] = ours, theirs
    return made


@pytest.mark.parametrize("name", THIN)
@pytest.mark.parametrize("size", [(16, 16), (12, 24), (2, 6)], ids=["square", "wide", "tiny"])
@torch.no_grad()
def test_equals_diffusers(pairs, name: str, size: tuple[int, int]) -> None:
    ours, theirs = pairs[name]
    x, t, cond = noise(2, 16, *size), torch.tensor([3.0, 761.5]), conditioning(ours.config)
    expected = theirs(x, cond.tokens, cond.pooled, t).sample
    for given in (x, x.to(memory_format=torch.channels_last)):
        difference = (ours(given, t, cond) - expected).abs().max()
        assert float(difference / expected.abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("config", "count"),
    [(SD3_MEDIUM, 2_028_328_000), (SD35_MEDIUM, 2_243_171_520), (SD35_LARGE, 8_056_627_520)],
    ids=["sd3_medium", "sd35_medium", "sd35_large"],
)
def test_published_size_and_names(config: MMDiTConfig, count: int) -> None:
    with torch.device("meta"):
        ours, theirs = MMDiT(config), reference(config)
    shapes = {name: p.shape for name, p in ours.state_dict().items()}
    assert shapes == {name: p.shape for name, p in theirs.state_dict().items()}
    assert sum(p.numel() for p in ours.parameters()) == count


@torch.no_grad()
def test_maps_of_attention_to_the_text() -> None:
    ours = MMDiT(THIN["sd35"])
    x, t, cond = noise(2, 16, 8, 12), torch.tensor([3.0, 761.5]), conditioning(ours.config)
    maps: list[Tensor] = []
    seen = ours(x, t, cond, maps)
    assert torch.allclose(seen, ours(x, t, cond), atol=1e-5)
    assert [tuple(each.shape) for each in maps] == [(2, 2, 4, 6, 9)] * 3
    shares = torch.stack(maps).sum(-1)  # the rest goes to the 24 patches
    assert float(shares.min()) > 0.01 and float(shares.max()) < 0.99
    # Where every key is alike, attention is even over the 24 patches and 9 tokens.
    ours.transformer_blocks[0].attn.norm_k.weight.data.zero_()
    ours.transformer_blocks[0].attn.norm_added_k.weight.data.zero_()
    maps = []
    ours(x, t, cond, maps)
    assert torch.allclose(maps[0], torch.full_like(maps[0], 1 / 33))


def test_bad_input_is_told() -> None:
    config = THIN["sd3"]
    network, t = MMDiT(config), torch.zeros(2)
    with pytest.raises(ValueError, match=r"26 wide and 8 high; .* at most 24x24"):
        network(noise(2, 16, 8, 26), t, conditioning(config))
    with pytest.raises(ValueError, match="7 wide and 8 high; multiples of 2"):
        network(noise(2, 16, 8, 7), t, conditioning(config))
    with pytest.raises(ValueError, match="no pooled text"):
        network(noise(2, 16, 8, 8), t, Conditioning(noise(2, 9, 24)))
    with pytest.raises(ValueError, match=r"head_width must be a multiple of 4, .*, got 3 . 6"):
        replace(config, heads=3, head_width=6)
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        replace(config, layers=0)


@pytest.fixture(scope="module")
def transformer(model: Model) -> Model:
    """The tiny model with a transformer in the U-Net's place."""
    config = replace(THIN["sd3"], in_channels=4, out_channels=4)
    backbone = MMDiT(replace(config, cross_attention_dim=16, pooled_dim=12))
    for parameter in backbone.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    backbone.eval().requires_grad_(False)
    return replace(model, backbone=backbone, prediction="flow", schedule=Schedule("flow", shift=3))


def last(model: Model, request: Request):
    *_, progress = generate(model, request)
    return progress


@pytest.mark.parametrize("sampler", samplers.names())
def test_every_sampler_drives_it(transformer: Model, sampler: str) -> None:
    done = last(transformer, Request(prompt="a rabbit", seed=3, steps=3, sampler=sampler))
    assert done.images is not None and done.images[0].size == (16, 16)
    other = last(transformer, Request(prompt="a red apple", seed=3, steps=3, sampler=sampler))
    assert not torch.equal(done.x, other.x)


def test_sizes_are_multiples_of_its_patches(transformer: Model) -> None:
    assert last(transformer, Request(seed=1, width=24, height=12)).images[0].size == (24, 12)
    with pytest.raises(ValueError, match="width must be a multiple of 4, such as 16, got 18"):
        last(transformer, Request(seed=1, width=18))


def test_pictures_masks_and_second_passes(transformer: Model, tmp_path: Path) -> None:
    picture, mask = tmp_path / "picture.png", tmp_path / "mask.png"
    Image.linear_gradient("L").resize((16, 16)).convert("RGB").save(picture)
    half = Image.new("L", (16, 16))
    half.paste(255, (0, 0, 8, 16))
    half.save(mask)
    start = {"seed": 1, "steps": 4, "image": str(picture)}
    drawn = last(transformer, Request(**start, mask=str(mask), mask_blur=0)).images[0]
    kept = (8, 0, 16, 16)
    with Image.open(picture) as before:
        assert drawn.crop(kept).tobytes() == before.crop(kept).tobytes()
        assert drawn.tobytes() != before.tobytes()
    assert last(transformer, Request(**start, strength=0.5, hires=1.5)).images[0].size == (24, 24)


def test_native_file_carries_it(transformer: Model, tmp_path: Path) -> None:
    path = tmp_path / "transformer.safetensors"
    checkpoints.save(transformer, path)
    read = checkpoints.load(path)
    assert isinstance(read.backbone, MMDiT)
    assert read.backbone.config == transformer.backbone.config
    request = Request(prompt="a rabbit", seed=3, steps=2)
    assert torch.equal(last(read, request).x, last(transformer, request).x)
