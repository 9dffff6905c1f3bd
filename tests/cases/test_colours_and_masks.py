"""Photos with colour profiles, masks of drawing programs, captions of other trainers."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inputs import (
    ADOBE_RGB,
    DISPLAY_P3,
    SRGB,
    captions,
    noisy,
    png_chunks,
    profile,
    write_json,
)
from PIL import Image, ImageCms

from pellucid.images.load import open_image, open_mask

# ---------------------------------------------------------------- 9: colour profiles

PROFILES = {
    "Adobe RGB": profile(ADOBE_RGB, 563 / 256),
    "Display P3": profile(DISPLAY_P3, 2.2),
    "linear grey": profile((), 1.0),
}


def in_srgb(picture: Image.Image, icc: bytes) -> np.ndarray:
    """The colours of a picture as Pillow's colour management sees them."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    target = ImageCms.createProfile("sRGB")
    if picture.mode not in ("RGB", "L"):
        picture = picture.convert("RGB")
    seen = ImageCms.profileToProfile(picture, source, target, outputMode="RGB")
    assert seen is not None
    return np.asarray(seen).astype(int)


@pytest.fixture
def kept(call: Any, model_file: Path, tmp_path: Path) -> Any:
    """The kept part of a picture that is extended to the right by its width."""

    def extend(photo: Path) -> np.ndarray:
        with Image.open(photo) as picture:
            width = picture.width
        out = tmp_path / "extended.png"
        options = ("--extend", f"0,0,{width},0", "--mask-blur", 0, "--seed", 1, "--out", out)
        status, _, err = call("generate", "a", "--image", photo, *options, "--model", model_file)
        assert status == 0, err
        with Image.open(out) as picture:
            assert "icc_profile" not in picture.info or b"sRGB" in picture.info["icc_profile"]
            return np.asarray(picture.convert("RGB"))[:, : width - 6].astype(int)

    return extend


PHOTOS = {
    "Adobe RGB in a PNG": ("Adobe RGB", "RGB", "png"),
    "Adobe RGB in a TIFF": ("Adobe RGB", "RGB", "tiff"),
    "Display P3 in a WebP": ("Display P3", "RGB", "webp"),
    "Display P3 in a JPEG": ("Display P3", "RGB", "jpg"),
    "Adobe RGB with a palette": ("Adobe RGB", "P", "png"),
    "grey": ("linear grey", "L", "png"),
}


@pytest.mark.parametrize("kind", PHOTOS)
def test_colours_are_converted_to_srgb(kind: str, kept: Any, tmp_path: Path) -> None:
    """Case 9: what is kept looks as it did; today the colours are off by up to 69 of 255."""
    name, mode, ending = PHOTOS[kind]
    photo = tmp_path / f"photo.{ending}"
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}
    noisy(16, 16, mode).save(photo, icc_profile=PROFILES[name], **options.get(ending, {}))
    with Image.open(photo) as picture:
        want = in_srgb(picture, PROFILES[name])[:, :10]
        plain = np.asarray(picture.convert("RGB"))[:, :10].astype(int)
    assert abs(want - plain).max() > 20
    assert abs(kept(photo) - want).max() <= 2


def test_transparency_of_a_photo_with_a_profile(kept: Any, tmp_path: Path) -> None:
    """Case 9: the colours are converted before they are laid on white."""
    picture = noisy(16, 16)
    alpha = Image.new("L", (16, 16), 255)
    alpha.paste(0, (0, 0, 16, 8))
    picture.putalpha(alpha)
    picture.save(tmp_path / "photo.png", icc_profile=PROFILES["Adobe RGB"])
    got = kept(tmp_path / "photo.png")
    assert (got[:8] == 255).all()
    want = in_srgb(noisy(16, 16), PROFILES["Adobe RGB"])[8:, :10]
    assert abs(got[8:] - want).max() <= 2


@pytest.mark.parametrize(
    "icc", [b"", b"damaged", PROFILES["Adobe RGB"][:200], "sRGB", "grey of RGB"]
)
def test_pixels_that_are_srgb_stay(icc: bytes | str, kept: Any, tmp_path: Path) -> None:
    """Case 9: no profile, one that cannot be read or used, and sRGB's own change nothing."""
    if icc == "sRGB":
        icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    elif icc == "grey of RGB":
        icc = PROFILES["linear grey"]
    assert isinstance(icc, bytes)
    picture = noisy(16, 16)
    picture.save(tmp_path / "photo.png", **({"icc_profile": icc} if icc else {}))
    assert abs(kept(tmp_path / "photo.png") - np.asarray(picture)[:, :10]).max() <= 1


def test_adobe_rgb_that_a_camera_names_in_the_exif(tmp_path: Path) -> None:
    """Case 9: without a profile, by the standard's rule "R03", as cameras write it."""
    picture, tags = Image.new("RGB", (16, 16), (100, 200, 50)), Image.Exif()
    tags[0x8769] = {0xA001: 0xFFFF, 0xA005: {1: "R03"}}
    picture.save(tmp_path / "camera.jpg", exif=tags, quality=100)
    want = in_srgb(picture, PROFILES["Adobe RGB"])[8, 8].astype(int)
    seen = open_image(tmp_path / "camera.jpg").getpixel((8, 8))
    assert np.abs(np.array(seen) - want).max() <= 3 and want[0] < 50
    tags[0x8769] = {0xA001: 1, 0xA005: {1: "R98"}}
    picture.save(tmp_path / "camera.jpg", exif=tags, quality=100)
    assert (
        np.abs(
            np.array(open_image(tmp_path / "camera.jpg").getpixel((8, 8))) - (100, 200, 50)
        ).max()
        <= 3
    )


def test_colours_that_a_png_states_without_a_profile(tmp_path: Path) -> None:
    """Case 9: cICP, gAMA and cHRM, as browsers read them; today they are ignored."""
    d65, p3 = (31270, 32900), (68000, 32000, 26500, 69000, 15000, 6000)
    srgb = (64000, 33000, 30000, 60000, 15000, 6000)
    for chunks, icc in [
        ([(b"cICP", bytes((12, 13, 0, 1)))], PROFILES["Display P3"]),
        ([(b"cICP", bytes((12, 4, 0, 1))), (b"sRGB", b"\0")], PROFILES["Display P3"]),
        ([(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", struct.pack(">8I", *d65, *p3))], None),
        ([(b"gAMA", struct.pack(">I", 100000))], profile(SRGB, 1.0)),
        ([(b"gAMA", struct.pack(">I", 55556))], profile(SRGB, 1.8)),
    ]:
        path = png_chunks(tmp_path / "a.png", *chunks)
        with Image.open(path) as picture:
            want = in_srgb(picture, icc or PROFILES["Display P3"])
        seen = np.asarray(open_image(path)).astype(int)
        assert abs(seen - np.asarray(noisy())).max() > 10
        # Dark colours differ: sRGB's curve is not an exponent of 2.2.
        assert abs(seen - want)[want > 60].max() <= 5, chunks
    for chunks in (
        [(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", struct.pack(">8I", *d65, *srgb))],
        [(b"gAMA", struct.pack(">I", 100000)), (b"sRGB", b"\0")],
        [(b"gAMA", bytes(4)), (b"cHRM", bytes(32))],
        [(b"cHRM", struct.pack(">8I", *d65, 64000, 0, 30000, 60000, 15000, 6000))],
        [(b"cHRM", struct.pack(">8I", *d65, *srgb[:2] * 3))],
        [(b"cICP", bytes((2, 2, 0, 1)))],
        [(b"cICP", bytes((12, 13)))],
    ):
        seen = np.asarray(open_image(png_chunks(tmp_path / "a.png", *chunks)))
        assert (seen == np.asarray(noisy())).all(), chunks


@pytest.mark.parametrize(("transfer", "white"), [(16, 148), (18, 191)])
def test_white_of_a_screenshot_in_hdr(transfer: int, white: int, tmp_path: Path) -> None:
    """Case 9: light of 203 cd/m2 is white (BT.2408), what is brighter is cut, and black is black."""
    chunk = (b"cICP", bytes((9, transfer, 0, 1)))
    path = png_chunks(tmp_path / "a.png", chunk, mode="L")
    seen, numbers = np.asarray(open_image(path)), np.asarray(noisy(mode="L"))
    assert (seen[numbers >= white] >= 254).all() and (numbers >= white).any()
    assert (seen[numbers < white - 10] < 245).all() and (seen[numbers < 20] < 40).all()
    assert (seen.max(2) == seen.min(2)).all()


# ---------------------------------------------------------------- 10: masks


def stroke(colour: tuple[int, int, int], ground: int = 0, mode: str = "RGBA") -> Image.Image:
    """A square in a corner of a layer: opaque where it is, and as opaque as `ground` elsewhere."""
    layer = Image.new("RGBA", (32, 32), (0, 0, 0, ground))
    layer.paste((*colour, 255 - ground if ground == 255 else 255), (0, 0, 12, 12))
    return layer.convert(mode) if mode != "P" else layer.quantize(4)


@pytest.fixture
def redrawn(call: Any, model_file: Path, tmp_path: Path) -> Any:
    """Which pixels are drawn anew with a mask, and what is said on the way."""

    def draw(mask: Image.Image, *options: object) -> tuple[np.ndarray, str] | str:
        photo, path, out = (tmp_path / f"{name}.png" for name in ("photo", "mask", "out"))
        noisy(32, 32).save(photo)
        mask.save(path)
        common = ("--image", photo, "--mask", path, "--mask-blur", 0, "--strength", 1, "--seed", 1)
        words = ("generate", "a", *common, *options, "--model", model_file, "--out", out)
        status, _, err = call(*words, "--overwrite")
        if status == 2:
            return str(err)
        assert status == 0, err
        pixels = np.asarray(Image.open(out).convert("RGB")).astype(int)
        return (pixels != np.asarray(noisy(32, 32))).any(2), err

    return draw


STROKES = {
    "white": stroke((255, 255, 255)),
    "black": stroke((0, 0, 0)),
    "red": stroke((255, 0, 0)),
    "grey and alpha": stroke((255, 255, 255), mode="LA"),
    "palette": stroke((255, 255, 255), mode="P"),
}


@pytest.mark.parametrize("kind", STROKES)
def test_strokes_on_transparency(kind: str, redrawn: Any) -> None:
    """Case 10: opaque strokes on a transparent layer are where the picture is drawn, or the command
    asks; either way it is said how the mask was read."""
    result = redrawn(STROKES[kind])
    if isinstance(result, str):
        assert "mask" in result and "transparent" in result
        return
    new, said = result
    assert new[:12, :12].mean() > 0.9 and not new[14:, 14:].any()
    assert "mostly transparent" in said and "; --invert-mask inverts that" in said


def test_strokes_the_other_way_round(redrawn: Any) -> None:
    """Case 10: `--invert-mask` is the answer to a wrong reading, and then nothing is asked."""
    result = redrawn(stroke((255, 255, 255)), "--invert-mask")
    assert not isinstance(result, str)
    new, _ = result
    assert not new[:12, :12].any() and new[14:, 14:].mean() > 0.9


def test_a_hole_is_drawn_and_said(redrawn: Any) -> None:
    """Case 10: a picture with a hole (OpenAI's masks) is drawn where the hole is, as before."""
    hole = noisy(32, 32)
    hole.putalpha(Image.new("L", (32, 32), 255))
    hole.paste((0, 0, 0, 0), (0, 0, 12, 12))
    result = redrawn(hole)
    assert not isinstance(result, str)
    new, said = result
    assert new[:12, :12].mean() > 0.9 and not new[14:, 14:].any()
    assert "mask" in said and "transparent" in said


@pytest.mark.parametrize(
    ("white", "kind"), [(1.0, np.float32), (255.0, np.float32), (255, np.int32), (65535, np.int32)]
)
def test_masks_of_other_numbers(white: float, kind: type, tmp_path: Path) -> None:
    """Case 10: a TIFF of a program that computes in 0 to 1, or in 32 bits, is not black all over."""
    levels = np.zeros((8, 8), kind)
    levels[2, 3] = white
    Image.fromarray(levels).save(tmp_path / "mask.tif")
    mask = np.asarray(open_mask(tmp_path / "mask.tif").image)
    assert mask[2, 3] == 255 and mask.sum() == 255


def test_a_ground_with_traces_of_a_brush(redrawn: Any) -> None:
    """Case 10: strokes on a ground that is transparent to the eye, not to the last bit."""
    layer = stroke((255, 255, 255))
    layer.putalpha(layer.getchannel("A").point(lambda level: max(level, 2)))
    result = redrawn(layer)
    assert not isinstance(result, str)
    assert result[0][:12, :12].mean() > 0.9 and "mostly transparent" in result[1]


def test_black_and_white_masks_stay(redrawn: Any) -> None:
    """Case 10: without transparency white is drawn, and that needs no word."""
    mask = Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 12, 12))
    for picture in (mask, mask.convert("RGB"), mask.convert("RGBA"), mask.convert("1")):
        result = redrawn(picture)
        assert not isinstance(result, str)
        new, _ = result
        assert new[:12, :12].mean() > 0.9 and not new[14:, 14:].any()


# ---------------------------------------------------------------- 11: captions


@pytest.fixture
def dogs(tmp_path: Path) -> Path:
    folder = tmp_path / "dogs"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    "data",
    ["a red fox\n".encode("utf-8-sig"), b"a red fox\r\n", "a red\n fox".encode("utf-8-sig")],
)
@pytest.mark.parametrize("ending", ["txt", "caption"])
def test_byte_order_mark_of_a_caption(data: bytes, ending: str, dogs: Path) -> None:
    """Case 11: Windows' editors begin a file with a mark, which is no part of the text."""
    noisy().save(dogs / "fox.png")
    (dogs / f"fox.{ending}").write_bytes(data)
    assert captions(dogs) == {"fox.png": "a red fox"}


@pytest.mark.parametrize("code", ["utf-16", "utf-16-le", "utf-16-be"])
def test_caption_in_utf_16(code: str, dogs: Path) -> None:
    """Case 11: "Unicode" of Notepad: with its mark it is read; without one it is refused by name."""
    noisy().save(dogs / "fox.png")
    (dogs / "fox.txt").write_bytes("a red füchs".encode(code))
    if code == "utf-16":
        assert captions(dogs) == {"fox.png": "a red füchs"}
    else:
        with pytest.raises(ValueError, match=r"fox\.txt"):
            captions(dogs)


@pytest.mark.parametrize("ending", ["TXT", "Txt", "CAPTION"])
def test_caption_with_an_ending_in_capitals(ending: str, dogs: Path) -> None:
    """Case 11: as Windows and cameras write endings; there it is the same file."""
    noisy().save(dogs / "fox.PNG")
    (dogs / f"fox.{ending}").write_text("a red fox")
    assert captions(dogs) == {"fox.PNG": "a red fox"}


def test_a_table_of_excel_with_semicolons(dogs: Path) -> None:
    """Case 11: what Excel writes in countries where the comma is part of numbers."""
    noisy().save(dogs / "fox.png")
    (dogs / "metadata.csv").write_bytes(b"\xef\xbb\xbffile_name;text\r\nfox.png;a fox, red\r\n")
    assert captions(dogs) == {"fox.png": "a fox, red"}


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_byte_order_mark_inside_of_metadata(name: str, dogs: Path) -> None:
    """Case 11: the same in the text of an entry."""
    noisy().save(dogs / "fox.png")
    text = "\ufeffa red fox"
    if name.endswith("csv"):
        content = f"file_name,text\nfox.png,{text}\n"
    else:
        content = json.dumps({"file_name": "fox.png", "text": text}, ensure_ascii=False)
    (dogs / name).write_text(content, "utf-8")
    assert captions(dogs) == {"fox.png": "a red fox"}


@pytest.mark.parametrize(
    ("folder", "caption"),
    [
        ("10_sks dog", "sks dog"),
        ("3_a_red_fox", "a red fox"),
        ("1_tok", "tok"),
        ("100_1girl", "1girl"),
        ("2001 a space odyssey", "2001 a space odyssey"),
        ("a red fox", "a red fox"),
        ("10th street", "10th street"),
    ],
)
def test_repeats_in_the_name_of_a_folder(folder: str, caption: str, dogs: Path) -> None:
    """Case 11: kohya's `<repeats>_<words>` (`train_util.py`, extract_dreambooth_params)."""
    (dogs / folder).mkdir()
    noisy().save(dogs / folder / "1.png")
    assert set(captions(dogs).values()) == {caption}


def test_a_caption_counts_more_than_its_folder(dogs: Path) -> None:
    """Case 11: a text beside the picture, in a folder with repeats."""
    (dogs / "10_sks dog").mkdir()
    noisy().save(dogs / "10_sks dog/1.png")
    (dogs / "10_sks dog/1.txt").write_text("a dog on grass")
    assert captions(dogs) == {"10_sks dog/1.png": "a dog on grass"}


LITTER = {
    "._fox.png": b"\0\5\x16\7\0\2\0\0Mac OS X        ",
    "._fox.txt": b"\0\5\x16\7\0\2\0\0Mac OS X        ",
    ".DS_Store": b"\0\0\0\1Bud1",
    "Thumbs.db": b"\xd0\xcf\x11\xe0",
    "desktop.ini": b"[.ShellClassInfo]",
    "__MACOSX/._fox.png": b"\0\5\x16\7",
    "__MACOSX/dogs/._fox.txt": b"\0\5\x16\7",
    ".ipynb_checkpoints/fox-checkpoint.png": b"",
    "@eaDir/fox.png/SYNOFILE_THUMB_M.jpg": b"",
}


@pytest.mark.parametrize("name", LITTER)
def test_what_systems_leave_in_folders(name: str, dogs: Path) -> None:
    """Case 11: macOS's `._` files, and other hidden ones, are neither pictures nor captions."""
    noisy().save(dogs / "fox.png")
    (dogs / "fox.txt").write_text("a red fox")
    path = dogs / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(LITTER[name])
    assert captions(dogs) == {"fox.png": "a red fox"}


def test_training_with_what_systems_leave(
    dogs: Path, tmp_path: Path, call: Any, sd1_file: Path
) -> None:
    """Case 11: the training itself."""
    noisy(64, 64).save(dogs / "fox.png")
    (dogs / "fox.txt").write_bytes(b"\xef\xbb\xbfa red fox")
    for name, data in LITTER.items():
        (dogs / name).parent.mkdir(parents=True, exist_ok=True)
        (dogs / name).write_bytes(data)
    out = tmp_path / "lora.safetensors"
    words = (f"data={dogs}", f"model={sd1_file}", f"out={out}", "steps=1", "size=64")
    status, _, err = call("train", "lora", *words)
    assert status == 0 and out.is_file(), err


def test_a_picture_that_a_list_names_is_never_litter(dogs: Path) -> None:
    """Case 11: what metadata name is meant, and a hidden folder above the data is no litter."""
    hidden = dogs / ".data"
    hidden.mkdir()
    noisy().save(hidden / "fox.png")
    write_json(hidden / "metadata.jsonl", {"file_name": "fox.png", "text": "a fox"})
    assert captions(hidden) == {"fox.png": "a fox"}
