"""Pixels: tensors to pictures and back, and pictures that say how they were made.

Everywhere else in Pellucid a picture is a tensor (3, H, W) in [-1, 1]; here it becomes a file.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps, PngImagePlugin
from torch import Tensor

MAX_SIDE = 16_384  # pixels
MAX_PIXELS = 100_000_000
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

# EXIF tags: the A1111 text goes where others look for it, the JSON beside it.
EXIF_IFD, USER_COMMENT, IMAGE_DESCRIPTION = 0x8769, 0x9286, 0x010E
ORIENTATION = 0x0112

# What A1111 writes for the values of some fields.
WORDS: dict[str, dict[Any, str]] = {
    "decoder": {"vae": "Full", "tiny": "TAESD"},
    "mask_invert": {False: "Inpaint masked", True: "Inpaint not masked"},
    "only_masked": {False: "Whole picture", True: "Only masked"},
    "inpaint_fill": {
        "fill": "fill",
        "original": "original",
        "noise": "latent noise",
        "blank": "latent nothing",
    },
}


def _from_words(field: str) -> Callable[[str], Any]:
    return {words: value for value, words in WORDS[field].items()}.__getitem__


# The names of the A1111 text in its order, and Pellucid's names for the same things.
PARAMETERS: tuple[tuple[str, str, Callable[[str], Any]], ...] = (
    ("Steps", "steps", int),
    ("Sampler", "sampler", str),
    ("Schedule type", "spacing", str),
    ("CFG scale", "guidance", float),
    ("Seed", "seed", int),
    ("Size", "size", str),
    ("Model hash", "model_hash", str),
    ("Model", "model", str),
    ("VAE", "vae", str),
    ("VAE Decoder", "decoder", _from_words("decoder")),
    ("Clip skip", "clip_skip", int),
    ("Denoising strength", "strength", float),
    ("Mask blur", "mask_blur", int),
    ("Mask mode", "mask_invert", _from_words("mask_invert")),
    ("Masked content", "inpaint_fill", _from_words("inpaint_fill")),
    ("Inpaint area", "only_masked", _from_words("only_masked")),
    ("Masked area padding", "padding", int),
    ("Hires upscale", "hires", float),
    ("Hires steps", "hires_steps", int),
    ("Hires upscaler", "hires_upscaler", str),
    ("Refiner", "refiner", str),
    ("Refiner switch at", "refiner_at", float),
)


def to_tensor(image: Image.Image) -> Tensor:
    """A picture as (3, H, W) float32 in [-1, 1]."""
    pixels = np.array(image.convert("RGB"))  # (H, W, 3) uint8, a copy
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div(127.5).sub(1)


def to_pil(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] as a picture; values outside are clamped.

    Raises ValueError if a value is not finite: that would be a black picture.
    """
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(f"pixels are {tuple(pixels.shape)}; (3, height, width) is wanted")
    pixels = pixels.detach().float().cpu()
    if not pixels.isfinite().all():
        raise ValueError("pixels has values that are not finite; the network overflowed")
    levels = pixels.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(levels.permute(1, 2, 0).numpy()))


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of a picture, scaled so that it fills width x height."""
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def grid(
    images: Sequence[Image.Image],
    columns: int | None = None,
    gap: int = 2,
    background: str = "white",
) -> Image.Image:
    """Pictures in rows from left to right; None makes it about square."""
    if not images:
        raise ValueError("images is empty; at least one picture is wanted")
    if columns is None:
        columns = math.ceil(math.sqrt(len(images)))
    if columns < 1:
        raise ValueError(f"columns is {columns}; it must be at least 1")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    width = max(image.width for image in images)
    height = max(image.height for image in images)
    sheet = Image.new(
        "RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), background
    )
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(image, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet


# ---------------------------------------------------------------- opening what a person hands over


def open_image(source: str | Path | BinaryIO) -> Image.Image:
    """The picture in a file as RGB: upright as its EXIF says, transparency laid on white.

    Raises ValueError: no such file, not a picture, truncated, more than MAX_SIDE pixels wide or
    high or MAX_PIXELS in all (judged by its header, before anything is unpacked).
    """
    return _flatten(_upright(source))


def open_mask(source: str | Path | BinaryIO) -> Image.Image:
    """The mask in a file, mode "L": 255 is to be drawn anew, 0 is to be kept.

    A picture that is transparent somewhere is drawn anew where it is transparent, and its colours
    do not count (OpenAI's masks). Any other is drawn anew where it is white (A1111's masks). What
    lies between is between. Raises ValueError as `open_image` does.
    """
    image = _upright(source)
    if _has_alpha(image):
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            return ImageChops.invert(alpha)
    return _flatten(image).convert("L")


def picture_size(source: str | Path) -> tuple[int, int]:
    """Width and height that `open_image` will give, from the header; ValueError as there."""
    with _header(source) as image:
        width, height = image.size
        try:
            turned = image.getexif().get(ORIENTATION, 1) >= 5  # 5 to 8 are the sideways ones
        except Exception as error:  # decoders meet hostile bytes with every kind of exception
            raise ValueError(f"{source} is truncated or damaged: {error}") from error
    return (height, width) if turned else (width, height)


def _header(source: str | Path | BinaryIO) -> Image.Image:
    name = source if isinstance(source, str | Path) else "the picture"
    if isinstance(source, str | Path) and not Path(source).is_file():
        raise ValueError(f"{name} is not a file; a picture (PNG, JPEG, WebP, ...) is wanted")
    with warnings.catch_warnings():
        # Pillow warns of large pictures in its own words; the check below says it in ours.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(source)
        except Image.DecompressionBombError:
            raise ValueError(_too_large(name, "more than 178 million pixels")) from None
        except Exception as error:  # decoders meet hostile bytes with every kind of exception
            raise ValueError(
                f"{name} is not a picture; PNG, JPEG, WebP and the like are wanted"
            ) from error
    width, height = image.size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        image.close()
        raise ValueError(_too_large(name, f"{width}x{height} pixels"))
    return image


def _upright(source: str | Path | BinaryIO) -> Image.Image:
    name = source if isinstance(source, str | Path) else "the picture"
    with _header(source) as image:
        try:
            image.load()
            return ImageOps.exif_transpose(image)
        except Exception as error:  # as above
            raise ValueError(f"{name} is truncated or damaged: {error}") from error


def _too_large(name: str | Path, size: str) -> str:
    return (
        f"{name} is too large: {size}; at most {MAX_SIDE} on a side and "
        f"{MAX_PIXELS // 1_000_000} million in all are allowed"
    )


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip instead of scale
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if _has_alpha(image):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


# ---------------------------------------------------------------- what is written into a picture


class Metadata(NamedTuple):
    """What a picture says about itself; None where it says nothing."""

    request: dict[str, Any] | None  # Pellucid's own JSON
    parameters: str | None  # the A1111 text


def write_parameters(request: Mapping[str, Any]) -> str:
    """A request in the words that other programs read (A1111's `parameters`).

    Known fields take A1111's names and order; other plain values follow under their own names;
    None, lists and objects are left out (the JSON has them). "Denoising strength" is that of the
    second pass where there is no picture to start from, as in A1111.
    """
    known = {ours for _, ours, _ in PARAMETERS}
    fields = {name: value for name, value in request.items() if value is not None}
    if "width" in fields and "height" in fields:
        fields["size"] = f"{fields['width']}x{fields['height']}"
    if "hires" in fields and "strength" not in fields and "hires_strength" in fields:
        fields["strength"] = fields.pop("hires_strength")
    for name in ("vae", "refiner"):  # files, which A1111 names without their folder
        if name in fields:
            fields[name] = Path(str(fields[name])).name
    fields |= {
        name: WORDS[name].get(fields[name], fields[name]) for name in WORDS if name in fields
    }
    pairs = [(theirs, fields[ours]) for theirs, ours, _ in PARAMETERS if ours in fields]
    special = {"prompt", "negative_prompt", "width", "height"}
    pairs += [
        (name, value)
        for name, value in fields.items()
        if name not in known | special and isinstance(value, str | int | float)
    ]
    lines = [str(fields.get("prompt", ""))]
    if fields.get("negative_prompt"):
        lines.append(f"Negative prompt: {fields['negative_prompt']}")
    lines.append(", ".join(f"{name}: {_quote(value)}" for name, value in pairs))
    return "\n".join(lines)


def read_parameters(text: str) -> dict[str, Any]:
    """The fields of an A1111 text under Pellucid's names, with width and height as numbers.

    A field that Pellucid has no name for keeps its own name and stays a string. Text without such
    fields is a prompt.
    """
    lines = text.strip("\n").split("\n")
    found = re.findall(r'\s*(\w[\w \-/]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)', lines[-1])
    names = {theirs for theirs, _, _ in PARAMETERS}
    if any(name in names for name, _ in found) and not lines[-1].startswith("Negative prompt:"):
        lines.pop()
    else:
        found = []
    prompt, negative = lines, list[str]()
    for index, line in enumerate(lines):
        if line.startswith("Negative prompt:"):
            prompt, negative = lines[:index], lines[index:]
            negative[0] = negative[0].removeprefix("Negative prompt:").removeprefix(" ")
            break
    fields: dict[str, Any] = {"prompt": "\n".join(prompt), "negative_prompt": "\n".join(negative)}
    ours = {theirs: (name, kind) for theirs, name, kind in PARAMETERS}
    for theirs, quoted in found:
        name, kind = ours.get(theirs, (theirs, str))
        value = _unquote(quoted.strip())
        try:
            fields[name] = kind(value)
        except (ValueError, KeyError):
            fields[name] = value
    if match := re.fullmatch(r"(\d+)x(\d+)", str(fields.get("size", ""))):
        del fields["size"]
        fields["width"], fields["height"] = int(match[1]), int(match[2])
    if "hires" in fields and "strength" in fields and "hires_strength" not in fields:
        fields["hires_strength"] = fields.pop("strength")
    return fields


def save(image: Image.Image, path: str | Path, request: Mapping[str, Any] | None = None) -> None:
    """Write a picture as its name says (.png, .jpg, .webp) with the request that made it inside.

    request: plain JSON values under Pellucid's names. The file appears whole or not at all. Raises
    ValueError: another suffix, no such folder, a full disk, a request too long for JPEG (64 kB).
    """
    path = Path(path)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path} ends in {path.suffix!r}; allowed are {', '.join(FORMATS)}")
    options: dict[str, Any] = {"quality": 95} if kind == "JPEG" else {}
    if kind == "WEBP":
        options = {"lossless": True}
    if request is not None and kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", _encodable(write_parameters(request)))
        info.add_text("pellucid", json.dumps(request))
        options["pnginfo"] = info
    elif request is not None:
        exif = Image.Exif()
        text = _encodable(write_parameters(request))
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
        exif[IMAGE_DESCRIPTION] = json.dumps(request)
        options["exif"] = exif.tobytes()
        if kind == "JPEG" and len(options["exif"]) > 65_533:
            raise ValueError(f"{path}: the request is too long for a JPEG (64 kB); use .png")
    write_whole(path, lambda file: image.save(file, kind, **options))


def read_metadata(path: str | Path) -> Metadata:
    """What `save`, or A1111, wrote into a picture. Raises ValueError if it is not a picture."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file; a picture is wanted")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # only the header is read: large or odd is no matter here
        try:
            with Image.open(path) as image:
                if isinstance(image, PngImagePlugin.PngImageFile):
                    parameters, text = image.text.get("parameters"), image.text.get("pellucid")
                else:
                    exif = image.getexif()
                    parameters = _user_comment(exif.get_ifd(EXIF_IFD).get(USER_COMMENT))
                    text = exif.get(IMAGE_DESCRIPTION)
        except Image.DecompressionBombError:
            raise ValueError(_too_large(path, "more than 178 million pixels")) from None
        except Exception as error:  # decoders meet hostile bytes with every kind of exception
            raise ValueError(f"{path} is not a picture that can be read: {error}") from error
    try:
        request = json.loads(text) if text else None
    except (ValueError, TypeError):
        request = None  # a picture may be described in another way than by us
    return Metadata(
        request if isinstance(request, dict) else None,
        None if parameters is None else str(parameters),
    )


def _quote(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def _unquote(text: str) -> str:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def _encodable(text: str) -> str:
    # A command line that is not valid UTF-8 reaches Python as lone surrogates.
    return text.encode("utf-8", "replace").decode("utf-8")


def _user_comment(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        return None
    code, text = value[:8], value[8:]
    if code == b"UNICODE\0":
        return text.decode("utf-16-be", "replace")
    return (text if code == b"ASCII\0\0\0" else value).decode("utf-8", "replace")


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write beside `path`, then rename, so that no half a file ever has the final name.

    Raises ValueError: no such folder, a full disk.
    """
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written: {path.parent} is not a folder")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ValueError(f"{path} could not be written: {error.strerror or error}") from error


# ---------------------------------------------------------------- how a picture came out of noise


def film_strip(
    noisy: Sequence[Image.Image],
    estimates: Sequence[Image.Image],
    labels: Sequence[str] | None = None,
    columns: int = 12,
) -> Image.Image:
    """All steps side by side: x_t above, the estimate of x0 below it, a label under both.

    labels: one for each step; None numbers them from 1. At most `columns` steps, evenly chosen with
    the first and the last among them.
    """
    frames = _frames(noisy, estimates, labels)
    if columns < 1:
        raise ValueError(f"columns is {columns}; it must be at least 1")
    if len(frames) > columns:
        last = len(frames) - 1
        chosen = [round(i * last / max(columns - 1, 1)) for i in range(columns)]
        frames = [frames[i] for i in (chosen if columns > 1 else [last])]
    return grid(frames, columns=len(frames))


def save_film(
    noisy: Sequence[Image.Image],
    estimates: Sequence[Image.Image],
    path: str | Path,
    labels: Sequence[str] | None = None,
    seconds: float = 4.0,
    scale: int = 2,
) -> None:
    """The same as an animated WebP that lasts `seconds`, then rests on the last step for one more.

    scale: each pixel becomes scale x scale. Raises ValueError if `path` does not end in .webp.
    """
    path = Path(path)
    if path.suffix.lower() != ".webp":
        raise ValueError(f"{path} ends in {path.suffix!r}; a film is a .webp")
    frames = [
        frame.resize((frame.width * scale, frame.height * scale), Image.Resampling.NEAREST)
        for frame in _frames(noisy, estimates, labels)
    ]
    duration = max(20, round(1000 * seconds / len(frames)))  # ms; browsers slow down what is faster
    durations = [duration] * (len(frames) - 1) + [duration + 1000]
    write_whole(
        path,
        lambda file: frames[0].save(
            file,
            "WEBP",
            save_all=True,
            append_images=frames[1:],
            duration=durations,
            loop=0,
            lossless=True,
        ),
    )


def _frames(
    noisy: Sequence[Image.Image],
    estimates: Sequence[Image.Image],
    labels: Sequence[str] | None,
) -> list[Image.Image]:
    if labels is None:
        labels = [str(number) for number in range(1, len(noisy) + 1)]
    if not noisy or not len(noisy) == len(estimates) == len(labels):
        raise ValueError(
            f"a film needs as many pictures above ({len(noisy)}) as below ({len(estimates)}) and "
            f"labels ({len(labels)}), at least one of each"
        )
    font = ImageFont.load_default()
    frames = []
    for above, below, label in zip(noisy, estimates, labels, strict=True):
        frame = Image.new("RGB", (above.width, above.height + 2 + below.height + 13), "white")
        frame.paste(above, (0, 0))
        frame.paste(below, (0, above.height + 2))
        middle = (above.width / 2, frame.height - 1)
        ImageDraw.Draw(frame).text(middle, label, fill="black", font=font, anchor="md")
        frames.append(frame)
    return frames


def draw_in_terminal(image: Image.Image, width: int = 64) -> str:
    """A picture as text, `width` characters wide, for a terminal with 24-bit colour.

    Each character is the upper half block: its ink is one pixel, its paper the pixel below.
    """
    if width < 1:
        raise ValueError(f"width is {width}; it must be at least 1")
    height = max(2, 2 * round(image.height * width / image.width / 2))
    pixels = np.array(image.convert("RGB").resize((width, height), Image.Resampling.BOX))
    lines = [
        "".join(
            "\x1b[38;2;{};{};{};48;2;{};{};{}m▀".format(*upper, *lower)
            for upper, lower in zip(top, bottom, strict=True)
        )
        for top, bottom in zip(pixels[0::2], pixels[1::2], strict=True)
    ]
    return "".join(f"{line}\x1b[0m\n" for line in lines)
