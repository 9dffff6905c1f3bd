"""Makers of the inputs: files as other programs write them, and damaged or hostile ones."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pellucid.adapters import adapt
from pellucid.data.imagefolder import pictures
from pellucid.model import Model
from pellucid.request import Request

# Fields of a thin U-Net with two levels of one layer each: half of a second less for every test.
SHORT: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "transformer_layers": (1, 1),
    "heads": (8, 8),
}

# ---------------------------------------------------------------- the only uses of internal API


def effect(model: Model, *files: Path) -> dict[str, Tensor]:
    """Parameter -> what the LoRAs add to it, for all that they change."""
    loras = tuple((str(file), 1.0, 1.0) for file in files)
    changed = adapt(model, Request(loras=loras))[0]
    deltas = {}
    for part in ("backbone", "text"):
        before, after = getattr(model, part).state_dict(), getattr(changed, part).state_dict()
        deltas |= {
            f"{part}.{name}": after[name] - value
            for name, value in before.items()
            if not torch.equal(after[name], value)
        }
    return deltas


def captions(folder: Path) -> dict[str, str]:
    """The captions of a folder that training takes, by the names of the pictures."""
    return {path.relative_to(folder).as_posix(): text for path, text in pictures(folder)}


# ---------------------------------------------------------------- the process itself

COMMAND = (sys.executable, "-m", "pellucid")


def environment(**changes: str) -> dict[str, str]:
    """Of a subprocess: as here, one thread, no colours."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **changes}


def run(*words: object, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """`pellucid words` as a process of its own."""
    options = {"capture_output": True, "env": environment()} | options
    return subprocess.run([*COMMAND, *map(str, words)], timeout=timeout, **options)


@contextlib.contextmanager
def unprivileged(folder: Path) -> Iterator[Path]:
    """A new folder in the system's temporary one that root's rights do not open.

    The tests may run as root, for whom nothing is read-only.
    """
    folder.mkdir()
    root = os.geteuid() == 0
    if root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                path.chmod(0o700)
        shutil.rmtree(folder)


# ---------------------------------------------------------------- folders of diffusers


def copy_folder(source: Path, target: Path) -> Path:
    """A copy that shares the weights; its other files can be written over."""

    def link(path: str, to: str) -> None:
        large = Path(path).suffix == ".safetensors"
        (os.link if large else shutil.copyfile)(path, to)

    shutil.copytree(source, target, copy_function=link)
    return target


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")


def change_json(path: Path, **changes: Any) -> None:
    """Put these fields into a JSON file."""
    write_json(path, json.loads(path.read_text("utf-8")) | changes)


def read_weights(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def replace_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write other weights in place of a file that may be shared."""
    path.unlink()
    save_file({key: value.contiguous() for key, value in weights.items()}, path)


def quietly(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call diffusers, transformers or PEFT without their warnings."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        return make(*args, **options)


# ---------------------------------------------------------------- pictures


def noisy(width: int = 16, height: int = 16, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture of random pixels."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


FORMATS = ("png", "jpg", "webp", "avif", "gif")


def a1111_picture(path: Path, text: str, kind: str = "") -> Path:
    """A picture that holds `text` where the A1111 web UI puts it for its kind; "" is by its name.

    As `modules/images.py` of the web UI: the key `parameters` of a PNG, the comment of a GIF, and
    the UserComment of all others, in big-endian UTF-16.
    """
    kind = kind or path.suffix.removeprefix(".")
    picture = noisy()
    if kind == "png":
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", text)
        picture.save(path, "PNG", pnginfo=info)
    elif kind == "gif":
        picture.save(path, "GIF", comment=text.encode())
    else:
        comment = b"UNICODE\0" + text.encode("utf-16-be")
        picture.save(path, {"jpg": "JPEG"}.get(kind, kind.upper()), exif=exif(comment))
    return path


def png_text(path: Path, **texts: str) -> Path:
    """A PNG with these texts, as Pillow writes them."""
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key.replace("_", "-") if key == "sd_metadata" else key, text)
    noisy().save(path, "PNG", pnginfo=info)
    return path


def png_chunks(
    path: Path, *chunks: tuple[bytes, bytes], spoil: bool = False, mode: str = "RGB"
) -> Path:
    """A PNG with further chunks behind its header, byte for byte; spoil: their checksums."""
    buffer = io.BytesIO()
    noisy(mode=mode).save(buffer, "PNG")
    data = buffer.getvalue()
    end = 8 + 4 + 4 + 13 + 4  # signature; length, name, content and checksum of IHDR
    extra = b""
    for name, content in chunks:
        check = zlib.crc32(name + content) ^ spoil
        extra += struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)
    path.write_bytes(data[:end] + extra + data[end:])
    return path


def hide(path: Path, text: str, mark: str, mode: str) -> Path:
    """A picture with a text in its lowest bits, one bit after the other as A1111's extension writes it.

    mode: RGBA for the alpha, RGB for the colours. A mark that ends in "comp" packs the text.
    """
    data = gzip.compress(text.encode()) if mark.endswith("comp") else text.encode()
    bits = "".join(f"{byte:08b}" for byte in mark.encode())
    bits += f"{8 * len(data):032b}" + "".join(f"{byte:08b}" for byte in data)
    picture = noisy(96, 40).convert(mode)
    pixels = picture.load()
    places = [(x, y) for x in range(96) for y in range(40)]
    per = 1 if mode == "RGBA" else 3
    for (x, y), at in zip(places, range(0, len(bits), per), strict=False):
        colours = list(pixels[x, y])  # type: ignore[index, call-overload]
        for index, bit in enumerate(bits[at : at + per]):
            channel = 3 if mode == "RGBA" else index
            colours[channel] = colours[channel] & ~1 | int(bit)
        pixels[x, y] = tuple(colours)  # type: ignore[index]
    picture.save(path, lossless=True)
    return path


def embedding_png(path: Path, content: Any, how: str) -> Path:
    """A1111's picture of an embedding, with the JSON in a text ("text") or in the pixels."""
    data = json.dumps(content).encode()
    if how == "text":
        info = PngImagePlugin.PngInfo()
        info.add_text("sd-ti-embedding", base64.b64encode(data).decode())
        noisy().save(path, "PNG", pnginfo=info)
        return path
    packed = np.frombuffer(zlib.compress(data, 9), np.uint8)
    height = 48
    size = len(packed) + height - len(packed) % height
    size += height * 3 - size % (height * 3)
    blocks = []
    for half in (packed & 15, packed >> 4):
        seed, mask = 0, []
        for _ in range(size):
            seed = (1664525 * seed + 1013904223) % 2**32
            mask.append(seed % 255 & 15)
        style = np.random.default_rng(len(blocks)).integers(1, 16, size) << 4  # looks alone
        blocks.append((np.resize(half, size) ^ mask | style).reshape(height, -1, 3))
    black = np.zeros((height, 1, 3), int)
    inside = np.asarray(noisy(24, height)).astype(int) | 1
    whole = np.concatenate([blocks[0], black, inside, black, blocks[1]], 1)
    Image.fromarray(whole.astype(np.uint8)).save(path)
    return path


USER_COMMENT, MAKE, MODEL, SOFTWARE, MAKER_NOTE = 0x9286, 0x010F, 0x0110, 0x0131, 0x927C


def exif(comment: bytes, order: str = ">", kind: int = 7, **tags: str) -> bytes:
    """EXIF with a UserComment, written by hand: byte order and type of the tag can be chosen.

    kind: 7 is UNDEFINED, which the standard asks for. tags: ASCII texts, "x0110" is the tag 0x0110.
    """
    texts = [(int(tag[1:], 16), text.encode() + b"\0") for tag, text in sorted(tags.items())]
    entries, data = [], b""
    start = 8 + 2 + 12 * (len(texts) + 1) + 4
    for tag, text in texts:
        text = text.ljust(4, b"\0")
        if len(text) == 4:
            entries.append(struct.pack(f"{order}HHI", tag, 2, 4) + text)
        else:
            entries.append(struct.pack(f"{order}HHII", tag, 2, len(text), start + len(data)))
            data += text + b"\0" * (len(text) % 2)
    sub = start + len(data)
    entries.append(struct.pack(f"{order}HHII", 0x8769, 4, 1, sub))
    inner = struct.pack(f"{order}HHHII", 1, USER_COMMENT, kind, len(comment), sub + 18)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    table = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + struct.pack("4x")
    return b"Exif\0\0" + head + table + data + inner + struct.pack("4x") + comment


def exif_type(tiff: bytes, tag: int) -> int:
    """The type of a tag of the EXIF directory."""
    tiff = tiff.removeprefix(b"Exif\0\0")
    order = "<" if tiff[:2] == b"II" else ">"

    def find(at: int, tag: int) -> tuple[int, int]:
        (count,) = struct.unpack_from(f"{order}H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            name, kind = struct.unpack_from(f"{order}HH", tiff, entry)
            if name == tag:
                return kind, struct.unpack_from(f"{order}I", tiff, entry + 8)[0]
        raise AssertionError(f"there is no tag {tag:#x}")

    directory = find(struct.unpack_from(f"{order}I", tiff, 4)[0], 0x8769)[1]
    return find(directory, tag)[0]


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 16 16
%%EndComments
newpath 0 0 moveto 16 16 lineto stroke
showpage
%%EOF
"""

# ---------------------------------------------------------------- colour profiles

# CIE xyz of the red, green and blue of a space, adapted to D50 as a profile has them (ICC.1:2010).
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))
D50 = (0.9642, 1.0, 0.8249)


def profile(colours: tuple[tuple[float, float, float], ...], gamma: float) -> bytes:
    """An ICC profile, version 2: three primaries, or none for grey, and one exponent."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    def text(kind: bytes, words: bytes) -> bytes:
        if kind == b"text":
            return kind + bytes(4) + words + b"\0"
        return kind + bytes(4) + struct.pack(">I", len(words) + 1) + words + bytes(1 + 78)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    tags = {b"desc": text(b"desc", b"test"), b"cprt": text(b"text", b"none")}
    tags[b"wtpt"] = b"XYZ " + bytes(4) + fixed(*D50)
    if colours:
        for letter, colour in zip(b"rgb", colours, strict=True):
            tags[bytes([letter]) + b"XYZ"] = b"XYZ " + bytes(4) + fixed(*colour)
            tags[bytes([letter]) + b"TRC"] = curve
    else:
        tags[b"kTRC"] = curve
    table, data = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content
    space = b"RGB " if colours else b"GRAY"
    head = struct.pack(
        ">I4xI4s4s4s12x4s", start + len(data), 0x02100000, b"mntr", space, b"XYZ ", b"acsp"
    )
    head = head.ljust(68, b"\0") + fixed(*D50)
    return head.ljust(128, b"\0") + table + data
