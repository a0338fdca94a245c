"""What a picture's first bytes say: its format, and its size as it will be displayed.

JPEG and PNG, which nearly all pictures are, are read here, in a few microseconds; the others by PIL.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ldm.data.decode import UnreadablePicture, open_picture, orientation

FORMATS = ("", "jpeg", "png", "webp", "gif", "bmp", "tiff", "avif", "ppm", "other")
"""The index keeps a format's place in this list; "" is what could not be read."""

_SIZE_MARKERS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # start of frame, T.81 table B.1
_NO_LENGTH = frozenset({0x01, 0xD8, *range(0xD0, 0xD8)})
_PNG = b"\x89PNG\r\n\x1a\n"


class PictureHeader(NamedTuple):
    """A picture as it will be displayed: EXIF's orientation is applied. Unreadable: ("", 0, 0)."""

    format: str
    width: int
    height: int


UNREADABLE = PictureHeader("", 0, 0)


class JpegHeader(NamedTuple):
    """A JPEG as it is stored."""

    width: int
    height: int
    turned: int  # EXIF's orientation, 1 to 8
    colours: int  # numbers to a pixel: 1 is grey, 3 is colour, 4 is print


def read_header(data: bytes | memoryview) -> PictureHeader:
    """Format and displayed size of an encoded picture; never raises, for what is read here may be anything."""
    first = bytes(data[:8])
    try:
        if first[:3] == b"\xff\xd8\xff":
            found = jpeg_header(data)
            return _by_pil(data) if found is None else _displayed("jpeg", *found[:3])
        if first == _PNG:
            return _png(data) or _by_pil(data)
    except (IndexError, struct.error):
        return UNREADABLE  # the header itself is cut
    return _by_pil(data)


def jpeg_header(data: bytes | memoryview) -> JpegHeader | None:
    """What stands before a JPEG's pixels; None where PIL has to look.

    Raises:
        IndexError, struct.error: the header is cut.
    """
    at, turned = 2, 1
    while True:
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _NO_LENGTH:
            at += 2
        elif marker in _SIZE_MARKERS:
            height, width, colours = struct.unpack_from(">HHB", data, at + 5)
            return JpegHeader(width, height, turned, colours) if height and width else None
        elif marker in (0xD9, 0xDA):  # the picture before its size
            return None
        else:
            (length,) = struct.unpack_from(">H", data, at + 2)
            if marker == 0xE1:
                segment = bytes(data[at + 4 : at + 2 + length])
                if segment[:6] == b"Exif\0\0":
                    turned = _exif_orientation(segment[6:])
                elif b"tiff:Orientation" in segment:  # in XMP, where PIL looks as well
                    return None
            at += 2 + length


def _png(data: bytes | memoryview) -> PictureHeader | None:
    width, height = struct.unpack_from(">II", data, 16)
    at, turned = 8, 1
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            return _displayed("png", width, height, turned) if height and width else None
        if kind == b"eXIf":
            turned = _exif_orientation(bytes(data[at + 8 : at + 8 + length]))
        elif kind in (b"iTXt", b"tEXt", b"zTXt") and _speaks_of_exif(bytes(data[at + 8 : at + 88])):
            return None
        at += 12 + length


def _speaks_of_exif(keyword: bytes) -> bool:
    return b"exif" in keyword or b"xmp" in keyword  # "Raw profile type exif", "XML:com.adobe.xmp"


def _exif_orientation(tiff: bytes) -> int:
    """Tag 0x0112 of the first directory; 1, upright, where there is none or the EXIF is malformed."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, entry)
            if tag == 0x0112:
                return struct.unpack_from(order + ("H" if kind == 3 else "I"), tiff, entry + 8)[0]
    except struct.error:
        pass
    return 1


def _by_pil(data: bytes | memoryview) -> PictureHeader:
    try:
        picture = open_picture(bytes(data), max_pixels=2**62)  # the limit is for whoever decodes
    except UnreadablePicture:
        return UNREADABLE
    name = (picture.format or "").lower()
    name = {"mpo": "jpeg", "jpeg2000": "other"}.get(name, name)
    turned = 1 if name == "tiff" else orientation(picture)  # PIL's TIFF reader has turned it already
    return _displayed(name if name in FORMATS else "other", picture.width, picture.height, turned)


def _displayed(name: str, width: int, height: int, turned: int) -> PictureHeader:
    return PictureHeader(name, height, width) if 5 <= turned <= 8 else PictureHeader(name, width, height)
