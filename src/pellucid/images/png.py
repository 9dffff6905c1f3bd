"""The chunks of a PNG: what its pixels need, and apart from that what it says.

Other programs put megabytes of settings, colour profiles and damaged EXIF into PNG files. None of that
may keep a picture from being opened, and none of it is unpacked beyond a limit.
"""

from __future__ import annotations

import codecs
import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
MAX_UNPACKED = 4 << 20  # bytes of a packed text or profile; a longer one is left out
FRACTION = 100_000  # of the numbers in gAMA and cHRM
EXIF_AS_TEXT = "Raw profile type exif"  # as ImageMagick writes it
XMP = "XML:com.adobe.xmp"


class Colours(NamedTuple):
    """What the numbers of the pixels mean, as a PNG says it without a profile."""

    codes: tuple[int, int] | None = None
    """Primaries and transfer function by their numbers in ITU-T H.273; the rest does not count then."""
    gamma: float | None = None
    """The exponent that makes light of numbers; None: that of sRGB."""
    primaries: tuple[float, ...] | None = None
    """x and y of white, red, green and blue; None: those of sRGB."""


class Png(NamedTuple):
    """What a PNG holds."""

    pixels: io.BytesIO
    """A PNG of the chunks that its pixels need."""
    texts: dict[str, str]
    """By their keys, of equal ones the first."""
    profile: bytes | None
    """The ICC profile."""
    colours: Colours | None
    """None: sRGB, or as the profile says."""
    exif: bytes
    """Without a header; empty if there is none."""


def read_png(file: BinaryIO) -> Png:
    """Take a PNG apart. A file that ends too early gives pixels that end too early."""
    pixels, texts = io.BytesIO(), dict[str, str]()
    profile, exif, colours = None, b"", dict[bytes, bytes]()
    pixels.write(SIGNATURE)
    for name, content, check in _chunks(file):
        sound = zlib.crc32(name + content) == check
        # Decoders leave out a damaged tRNS, which is not needed, and refuse a damaged IDAT.
        if name in PIXELS and (sound or name[:1].isupper()):
            pixels.write(
                struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)
            )
        elif name == b"iCCP" and sound:
            profile = _unpacked(content.partition(b"\0")[2][1:])
        elif name in (b"cICP", b"sRGB", b"gAMA", b"cHRM") and sound:
            colours[name] = content
        elif name == b"eXIf":
            exif = content
        elif name in (b"tEXt", b"zTXt", b"iTXt", b"comf"):  # the last one is ComfyUI's own
            key = content.partition(b"\0")[0].decode("latin-1")
            text = None if key in texts else _text(name, content)
            if text is not None:
                texts[key] = text
    pixels.seek(0)
    if not exif and EXIF_AS_TEXT in texts:
        exif = _exif_of_text(texts.pop(EXIF_AS_TEXT))
    found = _colours(colours, profile is not None)
    return Png(pixels, texts, profile, found, exif.removeprefix(b"Exif\0\0"))


def _colours(chunks: dict[bytes, bytes], has_profile: bool) -> Colours | None:
    """By the standard cICP counts before a profile, that before sRGB, and that before the others."""
    if len(codes := chunks.get(b"cICP", b"")) == 4 and codes[2:] == b"\0\1":  # RGB, full range
        return Colours((codes[0], codes[1]))
    if has_profile or b"sRGB" in chunks:
        return None
    sizes = {b"gAMA": 1, b"cHRM": 8}
    numbers = {
        name: [part / FRACTION for part in struct.unpack(f">{size}I", chunks[name])]
        for name, size in sizes.items()
        if len(chunks.get(name, b"")) == 4 * size and any(chunks[name])
    }
    gamma, primaries = numbers.get(b"gAMA"), numbers.get(b"cHRM")
    if gamma is None and primaries is None:
        return None
    return Colours(None, 1 / gamma[0] if gamma else None, tuple(primaries) if primaries else None)


def decoded(data: bytes) -> str:
    """UTF-8, else UTF-16 with its mark, else Windows' Latin-1, else Latin-1; without the mark.

    PNG's standard asks for Latin-1, many programs write UTF-8.
    """
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for code in ("utf-8-sig", *(("utf-16",) if wide else ()), "cp1252"):
        try:
            return data.decode(code)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes, int]]:
    """Name, content and checksum of each chunk; of a cut one, what is there."""
    file.seek(len(SIGNATURE))
    name = b""
    while name != b"IEND" and len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        content, check = file.read(length), file.read(4)
        if len(content) < length and name not in PIXELS:
            return
        yield name, content, int.from_bytes(check, "big")


def _text(name: bytes, content: bytes) -> str | None:
    """The text of a tEXt, zTXt, iTXt or comf chunk; None if it is damaged or too long."""
    rest = content.partition(b"\0")[2]
    if name in (b"tEXt", b"comf"):
        return decoded(rest)
    packed = name == b"zTXt"
    if packed:
        rest = rest[1:]  # the method
    elif len(rest) >= 2:
        packed = rest[0] == 1
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # language, translated key
    data = _unpacked(rest) if packed else rest
    return None if data is None else decoded(data)


def _unpacked(data: bytes) -> bytes | None:
    """None if the data is damaged, or longer than MAX_UNPACKED."""
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(data, MAX_UNPACKED)
    except zlib.error:
        return None
    return None if unpacker.unconsumed_tail or not unpacker.eof else unpacked


def _exif_of_text(text: str) -> bytes:
    """EXIF from its digits, behind two lines with its name and length."""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""
