"""Pictures: tensors, grids, what is written into them, and files that are none."""

from __future__ import annotations

import io
import json
import re
import resource
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence, PngImagePlugin

from pellucid.images.film import film_strip, save_film
from pellucid.images.load import open_header, open_image, open_mask
from pellucid.images.metadata import IMAGE_DESCRIPTION, Metadata, read_metadata, save_image
from pellucid.images.parameters import read_parameters, write_parameters
from pellucid.images.pixels import fit, grid, to_pil, to_tensor
from pellucid.images.terminal import draw_in_terminal

REQUEST: dict[str, Any] = {
    "prompt": "a rabbit",
    "negative_prompt": "blurry, dark",
    "steps": 20,
    "sampler": "euler_ancestral",
    "spacing": "karras",
    "guidance": 7.5,
    "seed": 0,
    "width": 64,
    "height": 48,
    "model": "emoji",
    "strength": None,
    "mix": [["a frog", 0.5]],
}


def gradient(width: int = 8, height: int = 6) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


# ---------------------------------------------------------------- tensors


def test_every_level_survives_the_round_trip() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    pixels = to_tensor(Image.fromarray(levels))
    assert pixels.shape == (3, 16, 16) and pixels.dtype == torch.float32
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert np.array_equal(np.asarray(to_pil(pixels)), levels)


def test_tensor_axes() -> None:
    pixels = to_tensor(gradient(8, 6))
    assert pixels.shape == (3, 6, 8)
    assert pixels[0, 0, 0] == -1 and pixels[0, 0, -1] == 1  # red grows to the right
    assert pixels[1, 0, 0] == -1 and pixels[1, -1, 0] == 1  # green grows downwards


def test_values_outside_are_clamped_and_nan_is_an_error() -> None:
    assert to_pil(torch.full((3, 2, 2), 7.0)).getpixel((0, 0)) == (255, 255, 255)
    assert to_pil(torch.full((3, 2, 2), -7.0)).getpixel((0, 0)) == (0, 0, 0)
    with pytest.raises(ValueError, match="not finite"):
        to_pil(torch.full((3, 2, 2), float("nan")))
    with pytest.raises(ValueError, match=r"\(3, height, width\)"):
        to_pil(torch.zeros(1, 3, 2, 2))


def test_fit_takes_the_middle() -> None:
    wide = Image.new("RGB", (30, 10), "red")
    wide.paste("blue", (10, 0, 20, 10))
    square = fit(wide, 10, 10)
    assert square.size == (10, 10)
    assert square.getpixel((5, 5)) == (0, 0, 255)


def test_grid() -> None:
    colours = ["red", "lime", "blue", "black", "yellow"]
    sheet = grid([Image.new("RGB", (4, 3), colour) for colour in colours], columns=2, gap=1)
    assert sheet.size == (2 * 5 + 1, 3 * 4 + 1)
    assert sheet.getpixel((1, 1)) == (255, 0, 0)
    assert sheet.getpixel((6, 1)) == (0, 255, 0)
    assert sheet.getpixel((1, 9)) == (255, 255, 0)
    assert sheet.getpixel((6, 9)) == (255, 255, 255)  # nothing there
    assert grid([gradient()] * 9, gap=0).size == (24, 18)
    with pytest.raises(ValueError, match="at least one"):
        grid([])
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        grid([gradient()], columns=0)


# ---------------------------------------------------------------- metadata


def test_parameters_text() -> None:
    assert write_parameters({**REQUEST, "name": "a: b"}) == (
        "a rabbit\n"
        "Negative prompt: blurry, dark\n"
        "Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7.5, Seed: 0, "
        'Size: 64x48, Model: emoji, name: "a: b"'
    )
    without = write_parameters({**REQUEST, "negative_prompt": ""})
    assert "Negative" not in without


def test_parameters_of_another_program() -> None:
    text = (
        "a (((house:1.3))) [on] a hill\nsun\nNegative prompt: dark, night\nfog\n"
        "Steps: 20, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7, Seed: 965400086, "
        'Size: 512x768, Model hash: 45dee52b12, Model: name, Clip skip: 2, Hashes: "a: 1, b: 2"'
    )
    fields = read_parameters(text)
    assert fields["prompt"] == "a (((house:1.3))) [on] a hill\nsun"
    assert fields["negative_prompt"] == "dark, night\nfog"
    assert (fields["width"], fields["height"]) == (512, 768)
    assert fields["steps"] == 20 and fields["guidance"] == 7.0 and fields["seed"] == 965400086
    assert fields["sampler"] == "Euler a" and fields["model_hash"] == "45dee52b12"
    assert fields["clip_skip"] == 2 and fields["Hashes"] == "a: 1, b: 2"


def test_text_without_parameters_is_a_prompt() -> None:
    assert read_parameters("a rabbit: red") == {
        "prompt": "a rabbit: red",
        "negative_prompt": "",
    }


one_line = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=30)


@settings(max_examples=100, deadline=None)
@given(prompt=one_line, negative=one_line, model=one_line, seed=st.integers(0, 2**63))
def test_parameters_round_trip(prompt: str, negative: str, model: str, seed: int) -> None:
    if prompt.startswith("Negative prompt:"):
        return
    request = {"prompt": prompt, "negative_prompt": negative, "seed": seed, "model": model.strip()}
    request["steps"] = 20  # three known names make a line of settings
    fields = read_parameters(write_parameters(request))
    assert fields["prompt"] == prompt
    assert fields["negative_prompt"] == negative
    assert fields["seed"] == seed
    quoted = re.search(r'[,:"]', model)
    assert quoted is not None or fields["model"] == request["model"]


@pytest.mark.parametrize("value", ["a, b", "a: b", 'say "x", y', "two\nlines", "back\\slash, x"])
def test_quoted_values_round_trip(value: str) -> None:
    text = write_parameters({"prompt": "p", "steps": 2, "seed": 1, "model": value})
    assert read_parameters(text)["model"] == value


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
@pytest.mark.parametrize("prompt", ["a rabbit", "ein Häschen, 兎 🐇\nsecond line", ""])
def test_a_picture_carries_its_request(tmp_path: Path, suffix: str, prompt: str) -> None:
    path = tmp_path / f"picture{suffix}"
    request = {**REQUEST, "prompt": prompt}
    save_image(gradient(), path, request)
    found = read_metadata(path)
    assert found.request == request
    assert found.parameters == write_parameters(request)
    assert list(tmp_path.iterdir()) == [path]
    assert open_image(path).size == (8, 6)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_pixels_are_kept(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    save_image(gradient(), path, REQUEST)
    assert np.array_equal(np.asarray(open_image(path)), np.asarray(gradient()))


def test_a_long_prompt(tmp_path: Path) -> None:
    request = {**REQUEST, "prompt": "rabbit " * 10_000}
    save_image(gradient(), tmp_path / "a.png", request)
    assert read_metadata(tmp_path / "a.png").request == request
    with pytest.raises(ValueError, match="too long for a JPEG"):
        save_image(gradient(), tmp_path / "a.jpg", request)
    assert not (tmp_path / "a.jpg").exists()


def test_a_picture_that_says_nothing(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg", ".webp"):
        save_image(gradient(), tmp_path / f"plain{suffix}")
        assert read_metadata(tmp_path / f"plain{suffix}") == Metadata(None, None)
    exif = Image.Exif()
    exif[IMAGE_DESCRIPTION] = "holidays"
    gradient().save(tmp_path / "camera.jpg", exif=exif)
    assert read_metadata(tmp_path / "camera.jpg").request is None


def test_a1111_text_in_a_png(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a rabbit\nSteps: 20, Seed: 1, Size: 64x64")
    gradient().save(tmp_path / "a.png", pnginfo=info)
    found = read_metadata(tmp_path / "a.png")
    assert found.request is None and found.parameters is not None
    assert read_parameters(found.parameters)["seed"] == 1


# ---------------------------------------------------------------- writing


def test_names_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.png"):
        save_image(gradient(), tmp_path / "a.bmp")
    with pytest.raises(ValueError, match="is not a folder"):
        save_image(gradient(), tmp_path / "none" / "a.png")


def test_a_full_disk_leaves_the_old_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_image(gradient(), path)
    before = path.read_bytes()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3)).astype(np.uint8))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ValueError, match=r"could not be written: File too large"):
            save_image(noise, path, REQUEST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- opening


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF0000WEBP"],
)
def test_files_that_are_no_pictures(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png is (not a picture|truncated)"):
        open_image(path)
    with pytest.raises(ValueError, match="not a picture"):
        read_metadata(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_truncated_pictures(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    save_image(Image.fromarray(noise), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"truncated or damaged|not a picture"):
        open_image(path)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.png"):
        with pytest.raises(ValueError, match="is not a file"):
            open_image(path)
        with pytest.raises(ValueError, match="is not a file"):
            read_metadata(path)


@pytest.mark.parametrize("size", [(30_000, 1), (1, 20_000), (12_000, 12_000), (40_000, 40_000)])
def test_too_large(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")  # a lie in the header
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is too large: .* at most 16384"):
        open_image(path)
    if size == (40_000, 40_000):  # of the others only the header is read
        with pytest.raises(ValueError, match=r"is too large: .* at most 16384"):
            read_metadata(path)


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    gradient(8, 6).save(tmp_path / "a.png", exif=exif)
    image = open_image(tmp_path / "a.png")
    assert image.size == (6, 8)
    assert image.getpixel((5, 0)) == gradient(8, 6).getpixel((0, 0))


def test_transparency_becomes_white() -> None:
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (255, 0, 0, 128))
    file = io.BytesIO()
    clear.save(file, "PNG")
    image = open_image(io.BytesIO(file.getvalue()))
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == (255, 255, 255)
    red, green, _ = image.getpixel((1, 0))
    assert red == 255 and 126 <= green <= 128


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "I;16"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((2, 2), 128 * 257, dtype=np.uint16))
    else:
        image = Image.new("L", (2, 2), 128).convert(mode)
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    image.save(path)
    opened = open_image(path)
    assert opened.mode == "RGB"
    level = opened.getpixel((0, 0))[0]
    assert abs(level - 128) <= 2 or mode == "1"


# ---------------------------------------------------------------- masks


def test_white_is_drawn_anew_or_what_is_transparent(tmp_path: Path) -> None:
    def read(image: Image.Image) -> list[int]:
        image.save(tmp_path / "mask.png")
        mask = open_mask(tmp_path / "mask.png").image
        assert mask.mode == "L"
        return np.asarray(mask).flatten().tolist()

    grey = Image.fromarray(np.array([[0, 100, 255]], dtype=np.uint8))
    assert read(grey) == read(grey.convert("RGB")) == [0, 100, 255]
    assert read(grey.convert("RGBA")) == [0, 100, 255]  # nowhere transparent: colours count
    clear = Image.new("RGBA", (3, 1), "white")
    clear.putalpha(Image.fromarray(np.array([[0, 100, 255]], dtype=np.uint8)))
    assert read(clear) == [255, 155, 0]
    assert read(Image.fromarray(np.array([[0, 65535]], dtype=np.uint16))) == [0, 255]
    assert read(grey.point(lambda level: 255 * (level > 50)).convert("1")) == [0, 255, 255]


def test_pictures_are_turned_upright_and_others_are_refused(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "webp"):
        for orientation in (1, 3, 6, 8):
            exif = Image.Exif()
            exif[0x0112] = orientation
            path = tmp_path / f"a.{suffix}"
            gradient(8, 6).save(path, exif=exif)
            size = (6, 8) if orientation >= 5 else (8, 6)
            assert open_image(path).size == size
    with pytest.raises(ValueError, match="is not a file"):
        open_header(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"text\.png is not a picture"):
        open_header(tmp_path / "text.png")


def test_parameters_of_an_inpainted_picture() -> None:
    request = {
        "prompt": "a",
        "strength": 0.75,
        "mask_blur": 4,
        "mask_invert": True,
        "inpaint_fill": "blank",
        "only_masked": True,
        "padding": 32,
    }
    text = write_parameters(request)
    assert text == (
        "a\nDenoising strength: 0.75, Mask blur: 4, Mask mode: Inpaint not masked, Masked content: "
        "latent nothing, Inpaint area: Only masked, Masked area padding: 32"
    )
    assert read_parameters(text) == {"negative_prompt": ""} | request
    odd = read_parameters(text.replace("Only masked", "A half"))
    assert odd["only_masked"] == "A half"


# ---------------------------------------------------------------- films, terminals


def test_film_strip_has_both_rows_and_labels() -> None:
    noisy = [Image.new("RGB", (16, 16), "red")] * 3
    estimates = [Image.new("RGB", (16, 16), "blue")] * 3
    strip = film_strip(noisy, estimates)
    assert strip.width == 3 * 18 + 2
    assert strip.getpixel((4, 4)) == (255, 0, 0)
    assert strip.getpixel((4, 4 + 18)) == (0, 0, 255)
    below = np.asarray(strip)[2 + 16 + 2 + 16 :]
    assert below.min() < 100  # the numbers are drawn
    assert not np.array_equal(below[:, 2:18], below[:, 20:36])  # 1 is not 2


def test_a_long_film_strip_keeps_first_and_last() -> None:
    shades = [Image.new("RGB", (8, 8), (i, i, i)) for i in range(100)]
    strip = film_strip(shades, shades, columns=5)
    assert strip.width == 5 * 10 + 2
    seen = [strip.getpixel((3 + 10 * i, 3))[0] for i in range(5)]
    assert seen == [0, 25, 50, 74, 99]


def test_film_is_an_animated_webp(tmp_path: Path) -> None:
    noisy = [Image.new("RGB", (16, 16), (50 * i, 0, 0)) for i in range(4)]
    path = tmp_path / "film.webp"
    save_film(noisy, noisy[::-1], path, labels=["999", "749", "499", "249"], seconds=0.4)
    with Image.open(path) as film:
        assert film.n_frames == 4
        durations, reds = [], []
        for frame in ImageSequence.Iterator(film):
            frame.load()
            durations.append(frame.info["duration"])
            reds.append(frame.convert("RGB").getpixel((4, 4))[0])
    assert durations == [100, 100, 100, 1100]
    assert reds == [0, 50, 100, 150]


def test_film_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.webp"):
        save_film([gradient()], [gradient()], tmp_path / "a.gif")
    with pytest.raises(ValueError, match="the same length of at least 1"):
        film_strip([gradient()], [])
    with pytest.raises(ValueError, match="at least 1, got 0, 0 and 0"):
        film_strip([], [])


def test_terminal() -> None:
    image = Image.new("RGB", (4, 4), "red")
    image.paste("blue", (0, 2, 4, 4))
    text = draw_in_terminal(image, width=2)
    assert text == "\x1b[38;2;255;0;0;48;2;0;0;255m▀" * 2 + "\x1b[0m\n"
    lines = draw_in_terminal(gradient(100, 50), width=20).splitlines()
    assert len(lines) == 5 and all(line.count("▀") == 20 for line in lines)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        draw_in_terminal(image, width=0)


def test_json_in_a_png_is_plain_json(tmp_path: Path) -> None:
    save_image(gradient(), tmp_path / "a.png", REQUEST)
    with Image.open(tmp_path / "a.png") as image:
        assert json.loads(image.info["pellucid"]) == REQUEST
