"""Upscalers: the layouts of the ESRGAN family, tiles, transparency, metadata, sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file
from torch import Tensor

from pellucid import checkpoints
from pellucid.cascade import SuperResolution, SuperResolutionConfig
from pellucid.esrgan import SRVGG, RRDBConfig, RRDBNet, SRVGGConfig
from pellucid.images.metadata import read_metadata, save_image
from pellucid.images.metadata.texts import read_texts
from pellucid.upscale import DiffusionUpscaler, NetworkUpscaler, enlarged, upscale

THIN = RRDBConfig(width=8, blocks=2, growth=4)


def old_names(state: dict[str, Tensor], config: RRDBConfig) -> dict[str, Tensor]:
    """Real-ESRGAN's names -> those of ESRGAN's first release (`B.sequential` numbers its layers)."""
    ups = {f"conv_up{i}": 3 * i for i in range(1, config.doublings + 1)}
    last = 3 * config.doublings + 2
    tops = {"conv_first": 0, "conv_hr": last, "conv_last": last + 2} | ups
    found = {}
    for name, tensor in state.items():
        top, rest = name.split(".", 1)
        if top == "body":
            block, rdb, conv, kind = rest.split(".")
            key = f"model.1.sub.{block}.{rdb.upper()}.{conv}.0.{kind}"
        elif top == "conv_body":
            key = f"model.1.sub.{config.blocks}.{rest}"
        else:
            key = f"model.{tops[top]}.{rest}"
        found[key] = tensor
    return found


def middle_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of its second release."""
    pairs = {"conv_body": "trunk_conv", "conv_up": "upconv", "conv_hr": "HRconv"}
    pairs |= {"body.": "RRDB_trunk.", ".rdb": ".RDB"}

    def renamed(name: str) -> str:
        for ours, theirs in pairs.items():
            name = name.replace(ours, theirs)
        return name

    return {renamed(name): tensor for name, tensor in state.items()}


def reference(state: dict[str, Tensor], x: Tensor, blocks: int, ups: int) -> Tensor:
    """RRDBNet as the equations of the paper say, from the weights alone."""

    def conv(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def lrelu(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    first = x = conv("conv_first", x)
    for b in range(blocks):
        begin = x
        for r in (1, 2, 3):
            seen = x
            for c in (1, 2, 3, 4):
                new = lrelu(conv(f"body.{b}.rdb{r}.conv{c}", seen))
                seen = torch.cat((seen, new), 1)
            x = x + 0.2 * conv(f"body.{b}.rdb{r}.conv5", seen)
        x = begin + 0.2 * x
    x = first + conv("conv_body", x)
    for i in range(1, ups + 1):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = lrelu(conv(f"conv_up{i}", x))
    return conv("conv_last", lrelu(conv("conv_hr", x)))


def picture(width: int = 20, height: int = 14) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("doublings", [0, 1, 2, 3])
@pytest.mark.parametrize("layout", ["new", "params_ema", "middle", "old", "safetensors"])
def test_rrdb_layouts(layout: str, doublings: int, tmp_path: Path) -> None:
    if layout == "middle" and doublings != 2:
        return  # it was only released for 4x
    config = replace(THIN, doublings=doublings)
    network = RRDBNet(config)
    state = network.state_dict()
    path = tmp_path / ("x.safetensors" if layout == "safetensors" else "x.pth")
    if layout == "safetensors":
        save_file(state, path)
    else:
        noise = {key: torch.randn_like(value) for key, value in state.items()}
        content: Any = {
            "new": state,
            "params_ema": {"params": noise, "params_ema": state},
            "middle": middle_names(state),
            "old": old_names(state, config),
        }[layout]
        torch.save(content, path)
    read = checkpoints.load_upscaler(path)
    x = torch.rand(1, 3, 6, 5)
    with torch.no_grad():
        torch.testing.assert_close(read.network(x), reference(state, x, 2, doublings))
    assert (read.name, read.scale) == ("x", 2**doublings)
    assert checkpoints.describe(path)["scale"] == f"{2**doublings}x"


def test_folded_pixels(tmp_path: Path) -> None:
    """RealESRGAN_x2plus: four pixels are one, and the result is twice as large."""
    torch.save({"params_ema": RRDBNet(replace(THIN, shuffle=2)).state_dict()}, tmp_path / "x2.pth")
    read = checkpoints.load_upscaler(tmp_path / "x2.pth")
    assert read.scale == 2
    assert enlarged(read, picture(7, 5)).size == (14, 10)  # not a multiple of 2


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_srvgg(scale: int, tmp_path: Path) -> None:
    network = SRVGG(SRVGGConfig(width=8, layers=3, scale=scale))
    torch.save({"params": network.state_dict()}, tmp_path / "x.pth")
    read = checkpoints.load_upscaler(tmp_path / "x.pth")
    assert read.network.config == network.config
    x = torch.rand(1, 3, 6, 5)
    state = network.state_dict()
    y = x
    for i in range(0, 9, 2):
        y = F.conv2d(y, state[f"body.{i}.weight"], state[f"body.{i}.bias"], padding=1)
        if i < 8:
            slope = state[f"body.{i + 1}.weight"][None, :, None, None]
            y = torch.where(y > 0, y, slope * y)
    wide = x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    with torch.no_grad():
        torch.testing.assert_close(read.network(x), F.pixel_shuffle(y, scale) + wide)


def test_an_upscaler_with_damaged_weights_is_named(tmp_path: Path) -> None:
    state = SRVGG(SRVGGConfig(width=8, layers=3)).state_dict()
    state["body.2.bias"][3] = torch.nan
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(checkpoints.CheckpointError, match=r"x\.pth is damaged: body\.2\.bias"):
        checkpoints.load_upscaler(tmp_path / "x.pth")


@pytest.mark.parametrize("kind", ["srvgg", "rrdb", "folded"])
def test_tiles_change_nothing(kind: str) -> None:
    network: SRVGG | RRDBNet = {
        "srvgg": lambda: SRVGG(SRVGGConfig(width=8, layers=3)),
        "rrdb": lambda: RRDBNet(THIN),
        "folded": lambda: RRDBNet(replace(THIN, shuffle=2)),
    }[kind]()
    whole = NetworkUpscaler("x", network)
    tiled = NetworkUpscaler("x", network, tile=20)
    steps = list(tiled.enlarge(picture(75, 61)))
    assert [step.done for step in steps] == list(range(1, 17)) and steps[-1].total == 16
    one = np.asarray(enlarged(whole, picture(75, 61))).astype(int)
    assert steps[-1].picture is not None
    assert np.abs(one - np.asarray(steps[-1].picture)).max() <= 1


# ---------------------------------------------------------------- the second stage of a model


@pytest.fixture(scope="module")
def stage() -> SuperResolution:
    torch.manual_seed(0)
    network = SuperResolution(
        SuperResolutionConfig(block_out_channels=(8, 8, 8), embedding=4, residual_scale=4)
    )
    return network.eval()


def test_tiles_of_the_second_stage_have_no_seams(stage: SuperResolution, monkeypatch: Any) -> None:
    given = picture(150, 100)
    whole, tiled = DiffusionUpscaler(stage), DiffusionUpscaler(stage, tile=48)
    steps = list(tiled.enlarge(given))
    assert (len(steps), steps[-1].total) == (12, 12) and steps[-1].picture is not None
    assert steps[-1].picture.size == (600, 400)
    one, other = (np.asarray(x).astype(int) for x in (enlarged(whole, given), steps[-1].picture))
    assert np.abs(one - other).max() <= 1
    monkeypatch.setattr("pellucid.upscale.REACH", 0)
    assert np.abs(one - np.asarray(enlarged(tiled, given)).astype(int)).max() > 10


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (30, 49)])
def test_any_size_for_the_second_stage(stage: SuperResolution, size: tuple[int, int]) -> None:
    upscaler = DiffusionUpscaler(stage, tile=24)
    large = enlarged(upscaler, picture(*size))
    assert large.size == (4 * size[0], 4 * size[1])
    assert large.tobytes() == enlarged(upscaler, picture(*size)).tobytes()


def test_transparency_by_the_second_stage(stage: SuperResolution) -> None:
    """As in a file of an emoji: black where it is clear."""
    given = Image.new("RGBA", (24, 24))
    given.paste((250, 250, 250, 255), (6, 6, 18, 18))
    *_, last = upscale(DiffusionUpscaler(stage), given, 2)
    assert last.picture is not None and last.picture.size == (48, 48)
    alpha = np.asarray(last.picture.getchannel("A"))
    assert alpha[:8].max() == 0 and alpha[16:32, 16:32].min() == 255
    *_, last = upscale(checkpoints.load_upscaler(), given)  # the one that ships
    large = np.asarray(last.picture).astype(int)
    assert large[..., 3].min() == 0 and large[large[..., 3] > 30, :3].min() > 150  # no dark line


# ---------------------------------------------------------------- the command


@pytest.fixture
def file(tmp_path: Path) -> Path:
    network = RRDBNet(THIN)
    network.conv_last.bias.data.fill_(0.5)
    torch.save(network.state_dict(), tmp_path / "4x-Thin.pth")
    return tmp_path / "4x-Thin.pth"


def test_the_command(call: Any, file: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PELLUCID_UPSCALERS", str(tmp_path))
    image = picture().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    save_image(image, "a.png", {"prompt": "a cat", "seed": 3})
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a dog\nSteps: 20, Seed: 4")
    info.add_text("workflow", "{}")
    picture().save("b.png", pnginfo=info)
    status, out, err = call("upscale", "a.png", "b.png", "--upscaler", "4x-thin")
    assert (status, err) == (0, "") and out.split() == ["outputs/a-4x.png", "outputs/b-4x.png"]
    with Image.open("outputs/a-4x.png") as large:
        assert (large.size, large.mode) == ((80, 56), "RGBA")
        low, high = large.getchannel("A").getextrema()
        assert low < 60 and high > 195  # a network with random weights enlarged it
    request = read_metadata("outputs/a-4x.png").request
    assert request is not None and (request["prompt"], request["seed"]) == ("a cat", 3)
    assert request["upscaled"] == {"by": "4x-Thin", "scale": 4}
    texts = read_texts("outputs/b-4x.png")
    assert texts["parameters"].startswith("a dog\nSteps: 20, Seed: 4, Postprocess upscale by: 4")
    assert texts["workflow"] == "{}"
    status, out, _ = call("upscale", "b.png", "--upscaler", file, "--scale", 1.5, "--json")
    assert json.loads(out)["images"][0] | {"path": ""} == {"path": "", "width": 30, "height": 21}
    assert call("upscale", "b.png", "--upscaler", "nearest", "--out", "c.png")[0] == 0
    with Image.open("c.png") as large:
        assert large.size == (40, 28)
    # Without an upscaler: the stage of the included model.
    assert call("upscale", "a.png", "--out", "d.png", "--scale", 3)[0] == 0
    with Image.open("d.png") as large:
        assert large.size == (60, 42)
    d = read_metadata("d.png").request
    assert d is not None and d["upscaled"] == {"by": "diffusion", "scale": 3}


def test_what_is_refused(refused: Any, file: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    picture().save("a.png")
    picture().convert("RGBA").save("clear.png")
    Image.new("RGB", (5000, 10)).save("long.png")
    Path("text.png").write_text("hello")
    with_file = ("--upscaler", file)
    assert "nowhere.png is not a file" in refused("upscale", "nowhere.png", *with_file)
    assert "text.png is not a picture" in refused("upscale", "a.png", "text.png", *with_file)
    said = refused("upscale", "long.png", *with_file)
    assert "long.png would have 20000x40 pixels at scale 4; at most 16384" in said
    assert "--scale must be above 0" in refused("upscale", "a.png", "--scale", 0)
    assert "does not exist" in refused("upscale", "a.png", "--upscaler", "nowhere")
    two = ("a.png", "clear.png", "--out", "x.png")
    assert "--out must be a folder for 2 pictures" in refused("upscale", *two, *with_file)
    Path("out.png").touch()
    assert "out.png exists" in refused("upscale", "a.png", "--out", "out.png", *with_file)


def test_files_that_are_refused(refused: Any, model_file: Path, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    state = RRDBNet(THIN).state_dict()
    grey = RRDBNet(replace(THIN, channels=1)).state_dict()
    vgg = SRVGG(SRVGGConfig(width=8, layers=2)).state_dict()
    swin = {"layers.0.residual_group.blocks.0.attn.qkv.weight": torch.zeros(3, 3)}
    files: dict[str, tuple[Any, str]] = {
        "swin": (swin, "is not an upscaler of a known kind (RRDBNet"),
        "extra": (state | {"body.0.rdb1.conv1x1.weight": torch.zeros(3)}, "1 unknown: body.0.rdb1"),
        "less": ({k: v for k, v in state.items() if "conv_hr" not in k}, "2 missing: conv_hr"),
        "grey": (grey, "takes 1 channels and gives 1"),
        "act": ({k: v for k, v in vgg.items() if v.ndim != 1 or "bias" in k}, "missing: body.1"),
        "list": ([1, 2], "is a pickle of a list"),
        "code": (Path("x"), "would run code"),
    }
    for name, (content, message) in files.items():
        torch.save(content, tmp_path / f"{name}.pth")
        said = refused("upscale", tmp_path / "a.png", "--upscaler", tmp_path / f"{name}.pth")
        assert message in said, (name, said)
    said = refused("upscale", tmp_path / "a.png", "--upscaler", model_file)
    assert "is a model without a second stage" in said
    (tmp_path / "cut.pth").write_bytes((tmp_path / "grey.pth").read_bytes()[:-100])
    refused("upscale", tmp_path / "a.png", "--upscaler", tmp_path / "cut.pth")


def test_in_a_second_pass(
    call: Any, refused: Any, file: Path, model_file: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PELLUCID_UPSCALERS", str(tmp_path))
    words = ("generate", "x", "--model", model_file, "--seed", 1, "--steps", 4, "--hires", 2)
    assert call(*words, "--hires-upscaler", "4x-Thin", "--out", "a.png")[0] == 0
    assert call(*words, "--hires-upscaler", "lanczos", "--out", "b.png")[0] == 0
    assert call("generate", "--like", "a.png", "--out", "c.png")[0] == 0
    a, b, c = (Image.open(f"{name}.png") for name in "abc")
    assert a.size == b.size == (32, 32) and a.tobytes() == c.tobytes() != b.tobytes()
    request = read_metadata("a.png").request
    assert request is not None and request["hires_upscaler"] == str(file)
    assert call(*words, "--hires-upscaler", "diffusion", "--out", "d.png")[0] == 0
    with Image.open("d.png") as d:
        assert d.size == (32, 32) and d.tobytes() != b.tobytes()
    said = refused(*words, "--hires-upscaler", "5x")
    assert "unknown hires upscaler '5x'" in said and "nearest first: 4x-Thin" in said
    assert "nowhere.pth does not exist" in refused(*words, "--hires-upscaler", "nowhere.pth")
