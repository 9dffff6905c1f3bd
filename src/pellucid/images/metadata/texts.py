"""The texts in a picture file, by their keys, for every format that holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.IptcImagePlugin import getiptcinfo

from pellucid.images.load import open_header
from pellucid.images.png import MAX_UNPACKED, XMP, decoded

EXIF_IFD, USER_COMMENT = 0x8769, 0x9286  # EXIF tags
TAGS = {0x010E: "ImageDescription", 0x010F: "Make", 0x0110: "Model", 0x0131: "Software"}
CAPTION = (2, 120)  # of the IPTC
XP_COMMENT = 0x9C9C  # of Windows, in UTF-16
MARKS = (b"\xff\xfe", b"\xfe\xff")  # of UTF-16
ENDIAN = {"<": "utf-16-le", ">": "utf-16-be"}


def read_texts(path: str | Path) -> dict[str, str]:
    """Of a PNG its text chunks, of all formats the texts of the EXIF and the XMP, the comment of a GIF,
    and the caption of the IPTC.

    What is damaged is left out. Raises ValueError if the file is not a picture.
    """
    image, texts = open_header(path, any_size=True)
    with image:
        found = exif_texts(image)
        comment = image.info.get("comment")
        if isinstance(comment, bytes | str):
            found["comment"] = _plain(comment)
        if caption := _caption(image):
            found["Caption"] = caption
        xmp = image.info.get("xmp")
        if isinstance(xmp, bytes) and len(xmp) <= MAX_UNPACKED:
            found[XMP] = _plain(xmp)
    return {key: text for key, text in {**found, **texts}.items() if text.strip()}


def _caption(image: Image.Image) -> str:
    """The caption of the IPTC of a JPEG or a TIFF; "" if there is none, or it is damaged."""
    try:
        iptc = getiptcinfo(image) if isinstance(image, ImageFile) else None
        caption = (iptc or {}).get(CAPTION)
    except Exception:  # a decoder can raise anything on malformed data
        return ""
    return _plain(caption) if isinstance(caption, bytes) else ""


def exif_texts(image: Image.Image) -> dict[str, str]:
    """The texts of the EXIF; of a damaged one none."""
    try:
        exif = image.getexif()
        tags = dict(exif)
        # Some programs put the comment into the first directory.
        comment = exif.get_ifd(EXIF_IFD).get(USER_COMMENT, tags.get(USER_COMMENT))
        order = exif.endian or "<"
    except Exception:  # a decoder can raise anything on malformed data
        return {}
    texts = {name: _plain(tags[tag]) for tag, name in TAGS.items() if _is_text(tags.get(tag))}
    if isinstance(comment, bytes):
        texts["UserComment"] = decode_comment(comment, order)
    elif isinstance(comment, str):
        texts["UserComment"] = decode_comment(comment.encode("latin-1", "replace"), order)
    if isinstance(tags.get(XP_COMMENT), bytes):
        texts["XPComment"] = _unicode(tags[XP_COMMENT], "<")
    return texts


def decode_comment(comment: bytes, order: str) -> str:
    """The text of an EXIF UserComment. order: "<" or ">", that of the EXIF.

    Eight bytes name the code. "UNICODE" is UTF-16 in the order of the EXIF, by the standard, but
    programs write both orders, UTF-8, and UTF-16 under other names.
    """
    code, body = comment[:8].rstrip(b"\0 ").upper(), comment[8:]
    if code == b"UNICODE":
        return _unicode(body, order)
    if code == b"JIS":
        code_of_jis = "iso2022_jp" if b"\x1b" in body else "shift_jis"
        return body.decode(code_of_jis, "replace").strip("\0")
    text = body if code in (b"ASCII", b"") else comment
    wide = text[:2] in MARKS or text.count(0) * 4 > len(text.rstrip(b"\0")) > 0
    return _unicode(text, order) if wide else _plain(text)


def _unicode(body: bytes, order: str) -> str:
    if body[:2] in MARKS:
        text = body.decode("utf-16", "replace")
    elif b"\0" not in body.rstrip(b"\0"):  # UTF-16 has zeros in every text with a digit or space
        text = decoded(body)
    else:
        other = ">" if order == "<" else "<"
        both = [body.decode(ENDIAN[each], "replace") for each in (order, other)]
        text = max(both, key=lambda text: sum(" " <= letter <= "~" for letter in text))
    return text.strip("\0").removeprefix("\ufeff")


def _plain(value: Any) -> str:
    """UTF-8, which Pillow has perhaps read as Latin-1."""
    if isinstance(value, str):
        try:
            value = value.encode("latin-1")
        except UnicodeEncodeError:
            return str(value)
    return decoded(value).strip("\0")


def _is_text(value: Any) -> bool:
    return isinstance(value, str | bytes)


def xmp_value(xmp: str, name: str) -> str:
    """The text of a property of an XMP packet, by its name without a prefix; "" if there is none."""
    if name not in xmp or "<!DOCTYPE" in xmp:  # its entities could make a text of any length
        return ""
    try:
        found = next((e for e in ElementTree.fromstring(xmp).iter() if _is(e.tag, name)), None)
    except (ElementTree.ParseError, ValueError):
        return ""
    return "" if found is None else "".join(found.itertext()).strip()


def _is(tag: object, name: str) -> bool:
    return isinstance(tag, str) and tag.rpartition("}")[2] == name
