"""Encoded pictures -> 8-bit RGB pixels, no more of them than are needed.

A JPEG is stored as 8 x 8 blocks of frequencies, from which libjpeg-turbo makes a half, a quarter or an eighth of the
picture directly, leaving out what the smaller picture cannot show (the other sizes it offers are slower than the whole
picture). That is nearly all of the time a large photograph takes. Everything else goes the careful way of
``ldm.data.decode``, and so does a JPEG about which libjpeg-turbo has the least complaint.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import simplejpeg

from ldm.data.decode import MAX_PIXELS, Colour, UnreadablePicture, decode
from ldm.data.headers import jpeg_header

Size = tuple[int, int]
"""(height, width) in pixels, as everywhere in this project; only PIL says it the other way round."""

_COLOURS = (1, 3)  # numbers to a pixel in grey and in colour; print has four


class Pixels(NamedTuple):
    """An upright picture, perhaps decoded at a fraction of its size."""

    values: np.ndarray  # (h, w, 3) uint8
    height: int  # of the whole picture
    width: int
    fraction: int = 1  # each value stands for so many pixels in a row and in a column, from the top left


def decode_pixels(
    data: bytes,
    *,
    shown: Size | None = None,
    margin: float = 1.0,
    background: Colour = (255, 255, 255),
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """Decode one picture; of an animation, the first frame.

    Args:
        data: the encoded picture.
        shown: the size in which its largest part will be shown; None decodes all pixels.
        margin: how many times ``shown`` is decoded at least, where there is so much.
        background: what transparent parts show.
        max_pixels: refused above it, before decoding.

    Raises:
        UnreadablePicture: with the reason in its text.
    """
    if data[:3] == b"\xff\xd8\xff":
        found = _decode_jpeg(data, shown, margin, max_pixels)
        if found is not None:
            return found
    values = np.array(decode(data, background=background, max_pixels=max_pixels))
    return Pixels(values, *values.shape[:2])


def _decode_jpeg(data: bytes, shown: Size | None, margin: float, max_pixels: int) -> Pixels | None:
    """None where this is no matter for the fast way."""
    try:
        header = jpeg_header(data)
    except (IndexError, struct.error):
        return None
    if header is None or header.colours not in _COLOURS:
        return None
    stored_width, stored_height, turned, _ = header
    if stored_height * stored_width > max_pixels:
        raise UnreadablePicture(
            f"{stored_width} x {stored_height} pixels are more than the limit of {max_pixels:,}"
        )
    height, width = (stored_width, stored_height) if 5 <= turned <= 8 else (stored_height, stored_width)
    fraction = 1
    if shown is not None:
        room = min(height / shown[0], width / shown[1]) / margin
        fraction = next(
            (n for n in (8, 4, 2) if n <= room and (turned == 1 or _divides(n, height, width))), 1
        )
    try:
        values = simplejpeg.decode_jpeg(
            data,
            colorspace="RGB",
            min_height=-(-stored_height // fraction) if fraction > 1 else 0,
            min_width=-(-stored_width // fraction) if fraction > 1 else 0,
        )
    except ValueError:
        return None
    if values.shape[:2] != (-(-stored_height // fraction), -(-stored_width // fraction)):
        return None  # a header that two read differently
    return Pixels(_upright(values, turned), height, width, fraction)


def _divides(fraction: int, height: int, width: int) -> bool:
    """Whether no value stands for less than the others, so that a picture may be turned around."""
    return height % fraction == 0 and width % fraction == 0


def _upright(values: np.ndarray, turned: int) -> np.ndarray:
    """Undo what EXIF's orientation says (tag 0x0112; TIFF 6.0, page 36)."""
    if turned >= 5:
        values = values.transpose(1, 0, 2)
    if turned in (2, 3, 6, 7):
        values = values[:, ::-1]
    if turned in (3, 4, 7, 8):
        values = values[::-1]
    return values
