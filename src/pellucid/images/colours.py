"""The numbers of a picture's own colour space become those of sRGB: by its profile, or by what else says
which one it is."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

from pellucid.images.png import Colours

# The mode of the pixels that a profile of this colour space is about.
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
EXIF_IFD, INTEROPERABILITY_IFD = 0x8769, 0xA005
# Adobe RGB (1998), sections 4.3.1 and 4.3.5: its exponent, and its light as that of sRGB's primaries.
ADOBE_GAMMA = 563 / 256
ADOBE_TO_SRGB = np.array([(1.39836, -0.39836, 0), (0, 1, 0), (0, -0.04293, 1.04293)])
COLOURS = "colours"  # the key of a `png.Colours` in a picture's `info`
D65 = (0.3127, 0.329)
# x and y of white, red, green and blue, by their numbers in ITU-T H.273.
PRIMARIES = {
    1: (*D65, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06),  # sRGB
    5: (*D65, 0.64, 0.33, 0.29, 0.6, 0.15, 0.06),
    6: (*D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (*D65, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),  # BT.2020
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (*D65, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),  # Display P3
}
GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}  # exponents of transfer functions
BRADFORD = np.array(
    [(0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296)]
)
NEAR = 0.03  # by which an exponent may differ from 2.2 and means sRGB
PAPER = 203 / 10_000  # of the brightest light of PQ: white in BT.2408
ROWS = 64  # of pixels that are converted at a time
SAME = 2  # levels of 255 by which a profile may differ from sRGB and counts as sRGB


def to_srgb(image: Image.Image) -> Image.Image:
    """A picture whose numbers mean sRGB: RGB or RGBA, or itself if it is sRGB already.

    A profile that is damaged, or about other pixels than these, is ignored, as browsers do. Without one,
    the EXIF may say Adobe RGB, as cameras write it, and a PNG its primaries and its exponent.
    """
    if isinstance(said := image.info.get(COLOURS), Colours):
        return _from_colours(image, said)
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
    return _from_light(image, (np.arange(256) / 255) ** ADOBE_GAMMA, ADOBE_TO_SRGB)


def _from_colours(image: Image.Image, said: Colours) -> Image.Image:
    """Or the picture itself: its colours are not known, or nearly those of sRGB."""
    if image.mode.startswith(("I", "F")):
        return image
    primaries = said.primaries or PRIMARIES[1]
    if said.codes is not None:
        if said.codes[0] not in PRIMARIES:
            return image
        primaries = PRIMARIES[said.codes[0]]
    light = _light(said)
    try:
        matrix = np.linalg.inv(_to_xyz(PRIMARIES[1])) @ _to_xyz(primaries)
    except (np.linalg.LinAlgError, ZeroDivisionError):  # numbers of no colours
        return image
    if light is None or not np.isfinite(matrix).all():
        return image
    sample = np.stack(np.meshgrid(*[np.arange(0, 256, 51)] * 3), -1).reshape(-1, 3)
    if abs(_levels(light[sample] @ matrix.T) * 255 - sample).max() <= SAME:
        return image
    return _from_light(image, light, matrix)


def _light(said: Colours) -> np.ndarray | None:
    """The light of the 256 levels, 1 for white; None: the transfer function is not known."""
    x = np.arange(256) / 255
    transfer = said.codes[1] if said.codes is not None else 13
    gamma = GAMMAS.get(transfer, said.gamma)
    if gamma is not None and abs(gamma - 2.2) > NEAR:
        return x**gamma
    if transfer in (1, 6, 13, 14, 15) or gamma is not None:  # video's is shown as sRGB's is
        return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    if transfer == 16:  # PQ, SMPTE ST 2084
        root = x ** (32 / 2523)
        light = (root - 0.8359375).clip(0) / (18.8515625 - 18.6875 * root)
        return light ** (8192 / 1305) / PAPER
    if transfer == 18:  # HLG, BT.2100: white is at 0.75
        light = np.where(
            x <= 0.5, x**2 / 3, (np.exp((x - 0.55991073) / 0.17883277) + 0.28466892) / 12
        )
        return light / light[191]
    return None


def _to_xyz(primaries: tuple[float, ...]) -> np.ndarray:
    """From light of these primaries to XYZ in which white is that of D65 (Lindbloom)."""
    white, red, green, blue = (
        np.array([x / y, 1, (1 - x - y) / y])
        for x, y in zip(primaries[0::2], primaries[1::2], strict=True)
    )
    matrix = np.stack([red, green, blue], 1)
    matrix = matrix * np.linalg.solve(matrix, white)
    x, y = D65
    cones = BRADFORD @ np.array([x / y, 1, (1 - x - y) / y]) / (BRADFORD @ white)
    return np.linalg.inv(BRADFORD) @ (cones[:, None] * BRADFORD) @ matrix


def _from_light(image: Image.Image, light: np.ndarray, matrix: np.ndarray) -> Image.Image:
    """light: that of each of the 256 levels. matrix: to light of sRGB's primaries."""
    colours, alpha = _split(image)
    pixels = np.array(colours.convert("RGB"))
    for row in range(0, len(pixels), ROWS):  # little at a time: the numbers need much memory
        levels = _levels(light[pixels[row : row + ROWS]] @ matrix.T)
        pixels[row : row + ROWS] = (levels * 255).round()
    converted = Image.fromarray(pixels)
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _levels(light: np.ndarray) -> np.ndarray:
    """sRGB's numbers, 0 to 1."""
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


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
