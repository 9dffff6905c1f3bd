"""Colour profiles: the numbers of a picture's own colour space become those of sRGB."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

# The mode of the pixels that a profile of this colour space is about.
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
SAME = 2  # levels of 255 by which a profile may differ from sRGB and counts as sRGB


def to_srgb(image: Image.Image) -> Image.Image:
    """A picture whose numbers mean sRGB: RGB or RGBA, or itself if it is sRGB already.

    A profile that is damaged, or about other pixels than these, is ignored, as browsers do.
    """
    profile = image.info.get("icc_profile")
    if not profile:
        return image
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
