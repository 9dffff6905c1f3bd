"""Colour profiles: the numbers of a picture's own colour space become those of sRGB."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

# The mode of the pixels that a profile of this colour space is about.
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
EXIF_IFD, INTEROPERABILITY_IFD = 0x8769, 0xA005
# Adobe RGB (1998), sections 4.3.1 and 4.3.5: its exponent, and its light as that of sRGB's primaries.
ADOBE_GAMMA = 563 / 256
ADOBE_TO_SRGB = np.array([(1.39836, -0.39836, 0), (0, 1, 0), (0, -0.04293, 1.04293)])
ROWS = 64  # of pixels that are converted at a time
SAME = 2  # levels of 255 by which a profile may differ from sRGB and counts as sRGB


def to_srgb(image: Image.Image) -> Image.Image:
    """A picture whose numbers mean sRGB: RGB or RGBA, or itself if it is sRGB already.

    A profile that is damaged, or about other pixels than these, is ignored, as browsers do. Without one,
    the EXIF may say Adobe RGB, as cameras write it.
    """
    profile = image.info.get("icc_profile")
    if not profile:
        return _from_adobe_rgb(image) if image.mode == "RGB" and _is_adobe_rgb(image) else image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = MODES.get(source.profile.xcolor_space.strip(), "")
        colours, alpha = _split(image)
        if colours.mode != mode:
            return image
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        if _changes_little(transform, mode):
            return image
        converted = ImageCms.applyTransform(colours, transform)
    except Exception:  # a malformed profile can raise anything
        return image
    assert converted is not None
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _is_adobe_rgb(image: Image.Image) -> bool:
    """Whether the EXIF names Adobe RGB as the standard has it: by the rules for interoperability."""
    try:
        exif = image.getexif()
        rules = exif.get_ifd(EXIF_IFD).get(INTEROPERABILITY_IFD)
        rules = rules if isinstance(rules, dict) else exif.get_ifd(INTEROPERABILITY_IFD)
        return str(rules.get(1, "")).startswith("R03")
    except Exception:  # a decoder can raise anything on malformed data
        return False


def _from_adobe_rgb(image: Image.Image) -> Image.Image:
    pixels = np.array(image)
    for row in range(0, len(pixels), ROWS):  # little at a time: the numbers need much memory
        light = (pixels[row : row + ROWS] / 255.0) ** ADOBE_GAMMA @ ADOBE_TO_SRGB.T
        light = light.clip(0, 1)
        levels = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
        pixels[row : row + ROWS] = (levels * 255).round()
    return Image.fromarray(pixels)


def has_alpha(image: Image.Image) -> bool:
    """Whether a picture may be transparent somewhere."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours, without a palette, and the transparency."""
    grey = image.mode in ("L", "LA", "La")
    if has_alpha(image):
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        return image.convert("RGB").convert("L" if grey else "RGB"), alpha
    return image.convert("RGB") if image.mode == "P" else image, None


def _changes_little(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether it leaves a sample of all colours as it is."""
    if mode == "RGB":
        levels = np.arange(0, 256, 17, dtype=np.uint8)
        sample = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    elif mode == "L":
        sample = np.arange(256, dtype=np.uint8)[None]
    else:
        return False
    before = Image.fromarray(sample)
    after = ImageCms.applyTransform(before, transform)
    assert after is not None
    change = np.asarray(after).astype(int) - np.asarray(before.convert("RGB"))
    return bool(abs(change).max() <= SAME)
