"""Inpainting: what the network sees, what comes back, and that the rest of the picture stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pydantic import ValidationError
from torch import Tensor

from pellucid import inpaint
from pellucid.backbones.unet import UNet, UNetConfig
from pellucid.conditioning import encode_captions
from pellucid.diffusion import Conditioning
from pellucid.guidance import Parts
from pellucid.images.load import open_image
from pellucid.images.metadata import read_metadata
from pellucid.images.parameters import read_parameters
from pellucid.images.pixels import fit, to_tensor
from pellucid.latents import first_noise, first_pass
from pellucid.model import Defaults, Model
from pellucid.noise import generators
from pellucid.pipeline import Progress, Request, generate, resolve
from pellucid.runtime import Runtime
from pellucid.schedule import Level, Schedule
from pellucid.vae import VAE, VAEConfig
from references import unguided

LEVEL = Level(0.8, 0.6, 100.0)


def run(model: Model, **fields: Any) -> Progress:
    request = Request.model_validate({"prompt": "a rabbit", "seed": 1} | fields)
    *_, last = generate(model, request)
    return last


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def with_channels(model: Model, channels: int) -> Model:
    """The same with a network of so many input channels, on Stable Diffusion's schedule."""
    config = UNetConfig(
        in_channels=channels,
        block_out_channels=(16, 32),
        layers_per_block=1,
        transformer_layers=(0, 1),
        heads=(2, 2),
        cross_attention_dim=16,
        norm_groups=8,
    )
    defaults = Defaults(4, 3.0, "ddim", "leading", 16, 16)
    return replace(
        model,
        backbone=UNet(config).eval().requires_grad_(False),
        schedule=Schedule(),
        prediction="eps",
        defaults=defaults,
    )


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """37x29, so no multiple of anything."""
    pixels = np.random.default_rng(0).integers(0, 256, (29, 37, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


@pytest.fixture
def mask(tmp_path: Path) -> str:
    """A white box, 12 <= x < 20 and 10 <= y < 18, of a picture of 37x29."""
    image = Image.new("L", (37, 29))
    ImageDraw.Draw(image).rectangle((12, 10, 19, 17), fill=255)
    image.save(tmp_path / "mask.png")
    return str(tmp_path / "mask.png")


# ---------------------------------------------------------------- the mask


def test_mask_is_inverted_grown_and_blurred(picture: str, mask: str) -> None:
    def made(**fields: Any) -> np.ndarray:
        request = Request(image=picture, mask=mask, **{"mask_blur": 0} | fields)
        return array(inpaint.mask_of(request, (37, 29)).image)

    plain = np.zeros((29, 37))
    plain[10:18, 12:20] = 255
    assert np.array_equal(made(), plain)
    assert np.array_equal(made(mask_invert=True), 255 - plain)
    wider = np.zeros((29, 37))
    wider[7:21, 9:23] = 255
    assert np.array_equal(made(mask_grow=3), wider)
    assert made(mask_grow=500).min() == 255
    blurred = made(mask_blur=1)  # what is marked stays whole, the blend is around it
    assert np.array_equal(blurred == 255, plain == 255) and blurred[14, 0] == 0
    assert 0 < blurred[14, 9] < blurred[14, 10] < blurred[14, 11] < 255


def test_beyond_the_picture_everything_is_drawn(picture: str) -> None:
    request = Request(image=picture, extend=(5, 0, 0, 3), mask_blur=2)
    made = array(inpaint.mask_of(request, (37, 29)).image)
    assert made.shape == (32, 42)
    assert made[:, :5].min() == 255 and made[29:].min() == 255
    row = made[5, 5:]  # from the left edge of the picture on
    assert 128 < row[0] < 255 and np.all(np.diff(row) <= 0) and row[10:].max() == 0


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"mask": "small.png"}, r"small\.png is 8x9 and the picture .*picture\.png is 37x29"),
        ({"mask": "black.png"}, r"black\.png: the mask is empty"),
        ({"mask": "absent.png"}, r"absent\.png is not a file"),
    ],
)
def test_masks_that_do_not_do(
    model: Model,
    picture: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 9), 255).save("small.png")
    Image.new("L", (37, 29)).save("black.png")
    with pytest.raises(ValueError, match=sentence):
        run(model, image=picture, **fields)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"mask": "m.png"}, "mask needs an image"),
        ({"extend": (0, 1, 0, 0)}, "extend needs an image"),
        ({"image": "a.png", "extend": (0, -1, 0, 0)}, "extend"),
        ({"image": "a.png", "extend": (0, 1)}, "extend"),
        ({"image": "a.png", "only_masked": True}, "only_masked needs a mask"),
        ({"image": "a.png", "mask_invert": True}, "mask_invert needs a mask"),
        ({"image": "a.png", "mask": "m.png", "hires": 2}, "cannot be combined with mask"),
        ({"inpaint_fill": "red"}, "inpaint_fill"),
        ({"mask_blur": -1}, "mask_blur"),
        ({"mask_grow": 10**6}, "mask_grow"),
        ({"padding": -1}, "padding"),
    ],
)
def test_fields_that_do_not_go_together(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Request(**fields)


def test_a_part_that_is_too_large(model: Model, tmp_path: Path) -> None:
    """It would be of the shape of what is drawn: 300,000 pixels wide."""
    path = str(tmp_path / "tall.png")
    Image.new("1", (8, 600), 1).save(path)
    fields = {"image": path, "mask": path, "only_masked": True, "width": 4096, "height": 8}
    with pytest.raises(ValueError, match="307200x600 pixels is too large"):
        run(model, **fields)


sides = st.integers(1, 200)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), whole=st.tuples(sides, sides), shape=st.tuples(sides, sides))
def test_the_box_around_a_mask(
    data: st.DataObject, whole: tuple[int, int], shape: tuple[int, int]
) -> None:
    ends = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in whole]
    (left, right), (top, bottom) = ends
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    left, top = min(left, whole[0] - 1), min(top, whole[1] - 1)
    right, bottom = min(right, whole[0]), min(bottom, whole[1])
    box = inpaint.around((left, top, right, bottom), data.draw(sides), shape, whole)
    width, height = box[2] - box[0], box[3] - box[1]
    assert box[0] <= left and box[1] <= top and box[2] >= right and box[3] >= bottom
    # One side follows from the other, to the pixel.
    assert width == round(height * shape[0] / shape[1]) or height == round(
        width * shape[1] / shape[0]
    )
    for start_, length, side in ((box[0], width, whole[0]), (box[1], height, whole[1])):
        assert 0 <= start_ <= side - length or length > side


# ---------------------------------------------------------------- what comes back


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sampler": "ddim_cfgpp", "guidance": 0.6},
        {"sampler": "euler_ancestral", "count": 2, "mask_blur": 1, "mask_grow": 2},
        {"only_masked": True, "padding": 3},
        {"only_masked": True, "padding": 300, "width": 24, "height": 16},
        {"mask_invert": True, "inpaint_fill": "blank", "mask_blur": 1},
        {"inpaint_fill": "noise", "strength": 0.5},
        {"inpaint_fill": "fill", "strength": 1},
        {"extend": (3, 0, 4, 5), "mask_blur": 1},
        {"extend": (3, 0, 4, 5), "mask_blur": 1, "only_masked": True},
        {"strength": 0},
    ],
    ids=str,
)
def test_outside_of_the_mask_the_picture_stays(
    model: Model, picture: str, mask: str, channels: int, fields: dict[str, Any]
) -> None:
    model = with_channels(model, channels)
    last = run(model, image=picture, mask=mask, **fields)
    assert last.images is not None and len(last.images) == fields.get("count", 1)
    request = Request(image=picture, mask=mask, **fields)
    weights = array(inpaint.mask_of(request, (37, 29)).image)
    left, top, right, bottom = request.extend
    edges = ((top, bottom), (left, right), (0, 0))
    original = np.pad(array(Image.open(picture)), edges, mode="edge")
    for made in map(array, last.images):
        assert made.shape == original.shape == (29 + top + bottom, 37 + left + right, 3)
        assert np.any(weights == 0) and np.array_equal(made[weights == 0], original[weights == 0])
        inside = np.abs(made - original)[weights == 255]
        assert inside.max() > 20 or (request.strength == 0 and inside.max() == 0)


def test_a_given_size_scales_the_picture_first(model: Model, picture: str, mask: str) -> None:
    last = run(model, image=picture, mask=mask, width=20, height=24, mask_blur=0)
    assert last.images is not None and last.images[0].size == (20, 24)
    scaled = array(fit(open_image(picture), 20, 24))
    same = np.all(array(last.images[0]) == scaled, axis=-1)
    assert 0.7 < same.mean() < 1 and same[:, :2].all()


def test_the_edge_is_blended(model: Model, picture: str, mask: str) -> None:
    request = resolve(model, Request(image=picture, mask=mask, width=37, height=29, mask_blur=3))
    canvas = inpaint.prepare(request, 8)
    assert canvas.size == (40, 32)
    red = array(canvas.paste(Image.new("RGB", canvas.size, "red")))
    assert canvas.mask is not None
    share = array(canvas.mask)[..., None] / 255
    expected = share * np.array([255, 0, 0]) + (1 - share) * array(canvas.picture)
    assert np.abs(red - expected).max() <= 1
    assert len(np.unique(share)) > 20


def test_only_the_masked_area_is_drawn_at_full_size(model: Model, picture: str, mask: str) -> None:
    fields = {"only_masked": True, "padding": 2, "width": 64, "height": 32, "mask_blur": 0}
    request = resolve(model, Request.model_validate({"image": picture, "mask": mask} | fields))
    canvas = inpaint.prepare(request, 8)
    assert canvas.box == (4, 8, 28, 20) and canvas.size == (64, 32)  # 12 high, so 24 wide
    assert canvas.pixels.shape == (1, 3, 32, 64) and canvas.picture.size == (37, 29)
    part = open_image(picture).crop(canvas.box).resize((64, 32), Image.Resampling.LANCZOS)
    assert torch.equal(canvas.pixels[0], to_tensor(part))
    assert 0.1 < float(canvas.weights.mean()) < 0.3
    assert float(canvas.weights[0, 0, 16, 32]) == 1


def test_new_area_has_nothing_of_the_repeated_edge(model: Model, picture: str) -> None:
    request = Request(image=picture, extend=(8, 0, 0, 0), mask_blur=3, width=45, height=29)
    request = resolve(model, request)
    canvas = inpaint.prepare(request, 8)
    assert torch.equal(canvas.pixels[0, :, :29, :8], canvas.pixels[0, :, :29, 8:9].expand(3, 29, 8))
    made = array(canvas.paste(Image.new("RGB", canvas.size, "red")))
    assert np.all(made[:, :8] == [255, 0, 0])
    assert np.array_equal(made[:, 24:], array(open_image(picture))[:, 16:])


def test_nothing_drawn_is_the_picture_itself(model: Model, picture: str) -> None:
    last = run(model, image=picture, extend=(1, 2, 3, 4), strength=0)
    assert (last.step, last.steps) == (0, 0) and last.images is not None
    assert last.images[0].size == (41, 35)
    assert np.array_equal(array(last.images[0])[2:31, 1:38], array(Image.open(picture)))


def test_strength_where_it_is_not_given(model: Model, picture: str, mask: str) -> None:
    def strength(**fields: Any) -> float | None:
        return resolve(model, Request(**fields)).strength

    assert strength() is None
    assert strength(image=picture) == 0.6
    assert strength(image=picture, mask=mask) == 0.75
    assert strength(image=picture, mask=mask, extend=(1, 0, 0, 0)) == 1
    assert strength(image=picture, mask=mask, strength=0) == 0


# ---------------------------------------------------------------- what the masked part begins with


def begin(model: Model, **fields: Any) -> tuple[Tensor, Tensor, Tensor]:
    """x without its noise, the clean latents and the weights of the start of a run."""
    request = resolve(model, Request(seed=5, strength=0.5, **fields))
    canvas = inpaint.prepare(request, 2)
    level = Level(0.6, 0.8, 500.0)
    step = first_pass(Runtime(model), request, canvas, level)
    noise = first_noise(Runtime(model), request, canvas.size, generators(5, 1))
    return (step.x - 0.8 * noise) / 0.6, step.x0, canvas.latent_weights(2)


def test_fills(model: Model, picture: str, mask: str) -> None:
    fields = {"image": picture, "mask": mask, "mask_blur": 0}
    clean, x0, weights = begin(model, **fields)
    torch.testing.assert_close(clean, x0, rtol=0, atol=1e-5)
    inside = weights.expand_as(x0) == 1
    assert set(weights.unique().tolist()) == {0, 1} and inside.sum() == 4 * 16

    blank, _, _ = begin(model, **fields, inpaint_fill="blank")
    assert blank[inside].abs().max() < 1e-5
    torch.testing.assert_close(blank[~inside], x0[~inside], rtol=0, atol=1e-5)

    noisy, _, _ = begin(model, **fields, inpaint_fill="noise")
    torch.testing.assert_close(noisy[~inside], x0[~inside], rtol=0, atol=1e-5)
    stream = generators(5, 1)
    first = first_noise(Runtime(model), resolve(model, Request(seed=5)), (38, 30), stream)
    second = first_noise(Runtime(model), resolve(model, Request(seed=5)), (38, 30), stream)
    assert (first - second).abs().max() > 1
    torch.testing.assert_close(noisy[inside], second[inside], rtol=0, atol=1e-5)

    filled, _, _ = begin(model, **fields, inpaint_fill="fill")
    request = resolve(model, Request(**fields))
    canvas = inpaint.prepare(request, 2)
    smooth = inpaint.surroundings(canvas.pixels, 1 - canvas.weights)
    torch.testing.assert_close(filled, Runtime(model).encode(smooth), rtol=0, atol=1e-5)


def test_at_full_strength_nothing_of_the_masked_part_is_left(model: Model, tmp_path: Path) -> None:
    model = with_channels(model, 4)  # whose first level is not pure noise
    Image.new("L", (16, 16), 255).save(tmp_path / "all.png")
    results = []
    for colour in ("red", "blue"):
        Image.new("RGB", (16, 16), colour).save(tmp_path / "a.png")
        fields = {"image": str(tmp_path / "a.png"), "mask": str(tmp_path / "all.png")}
        results.append(run(model, strength=1, **fields).x)
    assert torch.equal(*results)
    assert torch.equal(results[0], run(model).x)  # it is text to image


@settings(max_examples=50, deadline=None)
@given(height=st.integers(1, 33), width=st.integers(1, 33), seed=st.integers(0, 99))
def test_surroundings(height: int, width: int, seed: int) -> None:
    stream = torch.Generator().manual_seed(seed)
    pixels = torch.rand((1, 3, height, width), generator=stream)
    known = (torch.rand((1, 1, height, width), generator=stream) < 0.2).float()
    known[0, 0, seed % height, seed % width] = 1
    filled = inpaint.surroundings(pixels, known)
    seen = known.expand_as(pixels) == 1
    assert torch.equal(filled[seen], pixels[seen])
    # Means of what is known, and nothing of what is not.
    for channel in range(3):
        values = pixels[:, channel][known[:, 0] == 1]
        assert filled[:, channel].min() >= values.min() - 1e-5
        assert filled[:, channel].max() <= values.max() + 1e-5
    other = torch.where(seen, pixels, torch.full_like(pixels, 7.0))
    torch.testing.assert_close(inpaint.surroundings(other, known), filled, rtol=0, atol=1e-4)


def test_surroundings_go_on_at_the_edge() -> None:
    """Also where the edge is that of blocks of 2, 4, 8 ..."""
    pixels, known = torch.zeros(1, 1, 128, 128), torch.ones(1, 1, 128, 128)
    known[..., :64] = 0
    pixels[..., 64:80] = 1  # white next to it, black beyond
    filled = inpaint.surroundings(pixels, known)
    assert filled[0, 0, 100, 60:64].min() > 0.8 and filled[0, 0, 100, 0] < 0.75


def test_surroundings_of_what_is_half_known() -> None:
    pixels = torch.zeros(1, 1, 16, 16)
    pixels[..., 8:] = 1
    known = torch.full((1, 1, 16, 16), 0.01)
    known[..., :8] = 1
    assert inpaint.surroundings(pixels, known)[..., 9:].max() < 0.5


# ---------------------------------------------------------------- the network's side


def test_keep() -> None:
    estimate, original = torch.ones(2, 4, 2, 2), torch.full((1, 4, 2, 2), 5.0)
    weights = torch.tensor([[[[0.0, 1.0], [0.5, 0.0]]]])
    expected = torch.tensor([[5.0, 1.0], [3.0, 5.0]]).expand(2, 4, 2, 2)
    keep = inpaint.Keep(original, weights)
    assert torch.equal(keep(estimate), expected)
    plain = keep.around(unguided(lambda x, level: estimate))
    assert all(torch.equal(part, expected) for part in plain(estimate, LEVEL))

    def guided(x: Tensor, level: Level) -> Parts:
        return Parts(estimate, 2 * estimate, 3 * estimate)

    parts = keep.around(guided)(estimate, LEVEL)
    assert [float(part[0, 0, 0, 1]) for part in parts] == [1, 2, 3]
    assert [float(part[0, 0, 0, 0]) for part in parts] == [5, 5, 5]


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral", "dpmpp_2m", "unipc", "ddim_cfgpp"])
def test_an_ordinary_model_ends_at_the_original(
    model: Model, picture: str, mask: str, sampler: str
) -> None:
    model = with_channels(model, 4)
    fields = {"sampler": sampler, "steps": 6, "guidance": 1}
    last = run(model, image=picture, mask=mask, mask_blur=0, **fields)
    canvas = inpaint.prepare(last.request, 2)
    outside = canvas.latent_weights(2).expand_as(last.x) == 0
    original = Runtime(model).encode(canvas.pixels)
    torch.testing.assert_close(last.x[outside], original[outside], rtol=1e-4, atol=1e-4)
    assert (last.x - original)[~outside].abs().max() > 0.1


def inputs_of(model: Model, **fields: Any) -> tuple[Tensor, Progress]:
    """What the network was given at the first look."""
    seen: list[Tensor] = []
    hook = model.backbone.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    try:
        last = run(model, **fields)
    finally:
        hook.remove()
    return seen[0], last


def test_a_network_for_inpainting_sees_mask_and_masked_picture(
    model: Model, picture: str, mask: str
) -> None:
    model = with_channels(model, 9)
    x, last = inputs_of(model, image=picture, mask=mask, mask_blur=0, count=2)
    assert last.warnings == () and x.shape == (4, 9, 15, 19)  # two pictures, guided
    expected = torch.zeros(15, 19)
    expected[5:9, 6:10] = 1
    assert torch.equal(x[:, 4], expected.expand(4, 15, 19))
    pixels = to_tensor(open_image(picture))[None]
    pixels[:, :, 10:18, 12:20] = 0
    pixels = torch.nn.functional.pad(pixels, (0, 1, 0, 1), mode="replicate")
    latents = Runtime(model).encode(pixels).expand(4, -1, -1, -1)
    torch.testing.assert_close(x[:, 5:], latents, rtol=0, atol=1e-5)


@pytest.mark.parametrize("start_from", ["words", "picture"])
def test_without_a_mask_it_draws_everything(model: Model, picture: str, start_from: str) -> None:
    model = with_channels(model, 9)
    x, last = inputs_of(model, **({"image": picture} if start_from == "picture" else {}))
    (warning,) = last.warnings
    assert "for inpainting" in warning and "whole picture" in warning
    assert x[:, 4].min() == 1
    grey = Runtime(model).encode(torch.zeros(1, 3, 16, 16))
    torch.testing.assert_close(x[:, 5:], grey.expand(2, -1, -1, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("channels", "word"), [(8, "InstructPix2Pix"), (7, "7 input channels")])
def test_networks_of_another_kind(model: Model, channels: int, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        run(with_channels(model, channels))


# ---------------------------------------------------------------- beside diffusers


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("channels", "strength", "sampler", "spacing"),
    [
        (9, 1.0, "ddim", "leading"),
        (9, 1.0, "euler", "leading"),
        (9, 1.0, "dpmpp_2m", "trailing"),
        (9, 0.6, "ddim", "leading"),
        (9, 0.6, "dpmpp_2m", "trailing"),
        # diffusers mixes the original into x and not into x0, which in one-step methods is the same
        (4, 0.6, "ddim", "leading"),
        (4, 0.6, "euler", "leading"),
    ],
)
@torch.no_grad()
def test_equals_diffusers(
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    channels: int,
    strength: float,
    sampler: str,
    spacing: str,
) -> None:
    """Ten steps of StableDiffusionInpaintPipeline with the same random weights."""
    diffusers = pytest.importorskip("diffusers")
    pixels = np.random.default_rng(1).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((40, 32), Image.Resampling.BICUBIC)
    mask = Image.new("L", (40, 32))
    ImageDraw.Draw(mask).rectangle((8, 4, 23, 19), fill=255)
    picture.save(tmp_path / "picture.png")
    mask.save(tmp_path / "mask.png")

    ours = with_channels(model, channels)
    vae_config = VAEConfig(block_out_channels=(16, 32), layers_per_block=1, norm_groups=8)
    ours = replace(ours, vae=VAE(vae_config).eval().requires_grad_(False))
    c = ours.backbone.config
    assert isinstance(c, UNetConfig)
    unet = diffusers.UNet2DConditionModel(
        sample_size=64,
        in_channels=channels,
        out_channels=4,
        block_out_channels=c.block_out_channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=c.heads,
        cross_attention_dim=c.cross_attention_dim,
        norm_num_groups=c.norm_groups,
    ).eval()
    unet.load_state_dict(ours.backbone.state_dict())
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
    ).eval()
    vae.load_state_dict(ours.vae.state_dict())
    kind = {
        "ddim": diffusers.DDIMScheduler,
        "euler": diffusers.EulerDiscreteScheduler,
        "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    }[sampler]
    extra: dict[str, Any] = (
        {"clip_sample": False, "set_alpha_to_one": False} if sampler == "ddim" else {}
    )
    scheduler = kind(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing=spacing,
        steps_offset=1,
        **extra,
    )
    pipe = diffusers.StableDiffusionInpaintPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    # The likeliest latents in place of a sample, whose noise would come off the seed's.
    monkeypatch.setattr(
        pipe,
        "_encode_vae_image",
        lambda image, generator: vae.encode(image).latent_dist.mode() * vae.config.scaling_factor,
    )
    told: Conditioning = encode_captions(ours.text, ours.tokenizer, ["a rabbit", "a red apple"])
    expected = pipe(
        prompt_embeds=told.tokens[:1],
        negative_prompt_embeds=told.tokens[1:],
        image=picture,
        mask_image=mask,
        width=40,
        height=32,
        strength=strength,
        num_inference_steps=10,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(4),
        output_type="pil",
    ).images[0]
    last = run(
        ours,
        negative_prompt="a red apple",
        image=str(tmp_path / "picture.png"),
        mask=str(tmp_path / "mask.png"),
        mask_blur=0,
        strength=strength,
        steps=10,
        seed=4,
        sampler=sampler,
        spacing=spacing,
    )
    assert last.images is not None
    inside = array(mask) == 255
    difference = array(last.images[0])[inside] - array(expected)[inside]
    assert np.abs(difference).max() <= 1
    assert array(expected)[inside].std() > 10  # there is something to compare


# ---------------------------------------------------------------- from the command line, and again


def test_a_picture_that_was_inpainted_is_made_again(
    call: Any,
    refused: Any,
    model_file: Path,
    picture: str,
    mask: str,
    tmp_path: Path,
) -> None:
    common = ("--model", model_file, "--out")
    for number, options in enumerate(
        (
            ("--mask", mask, "--mask-blur", 1, "--mask-grow", 1, "--fill", "noise"),
            ("--mask", mask, "--only-masked", "--padding", 3, "--invert-mask", "--film"),
            ("--extend", "0,2,3,0", "--strength", 0.5),
        )
    ):
        first, again = tmp_path / f"{number}.png", tmp_path / f"{number}-again.png"
        words = ("a rabbit", "--seed", 3, "--image", picture, *options, *common, first)
        for drawn in (words, ("--like", first, *common, again)):
            status, _, err = call("generate", *drawn)
            assert (status, err) == (0, "")
        assert Image.open(first).tobytes() == Image.open(again).tobytes()
        found = read_metadata(first)
        assert found.request == read_metadata(again).request
        assert found.parameters is not None
        fields = read_parameters(found.parameters)
        assert fields["strength"] == (0.5 if number == 2 else 0.75)
        assert ("padding" in fields) == ("Masked area padding" in found.parameters)
        assert ("Mask blur" in found.parameters) == ("mask_blur" in fields)
    assert "Masked content: latent noise" in str(read_metadata(tmp_path / "0.png").parameters)
    text = str(read_metadata(tmp_path / "1.png").parameters)
    assert "Mask mode: Inpaint not masked" in text and "Inpaint area: Only masked" in text
    words = ("generate", "a", *common, first)
    assert "--extend" in refused(*words, "--image", picture, "--extend", "1,2")
    assert "--mask needs an --image" in refused(*words, "--mask", mask)
