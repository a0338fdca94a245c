"""A picture's header says what PIL would say of the whole picture, and never more than it can know."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from ldm.data.headers import UNREADABLE, read_header
from tests.data.made import encoded

PIXELS = np.arange(7 * 4 * 3, dtype=np.uint8).reshape(4, 7, 3)


def exif(turned: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = turned
    tags[0x010F] = "somebody"
    return tags


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turned", range(1, 9))
def test_size_is_as_displayed(kind: str, turned: int) -> None:
    data = encoded(PIXELS, kind, exif=exif(turned))
    with Image.open(io.BytesIO(data)) as picture:
        upright = ImageOps.exif_transpose(picture)
    header = read_header(data)
    assert (header.format, header.width, header.height) == (kind.lower(), upright.width, upright.height)


@pytest.mark.parametrize(
    ("kind", "modes"),
    [
        ("JPEG", ("L", "RGB", "CMYK")),
        ("PNG", ("1", "L", "P", "RGB", "RGBA", "I;16")),
        ("GIF", ("1", "L", "P", "RGB")),
        ("BMP", ("1", "L", "P", "RGB")),
        ("PPM", ("1", "L", "RGB", "I;16")),
    ],
)
def test_every_format_and_mode(kind: str, modes: tuple[str, ...]) -> None:
    for mode in modes:
        assert read_header(encoded(Image.new(mode, (9, 5)), kind)) == (kind.lower(), 9, 5), mode


def test_progressive_and_with_a_thumbnail_full_of_markers() -> None:
    data = encoded(PIXELS, "JPEG", progressive=True, exif=exif(1), icc_profile=b"\xff\xc0" * 40_000)
    assert read_header(data) == ("jpeg", 7, 4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_cut_header_is_unreadable_and_a_cut_picture_is_not(kind: str) -> None:
    data = encoded(PIXELS, kind, exif=exif(6))
    sizes = {read_header(data[:cut]) for cut in range(len(data))}
    assert sizes <= {UNREADABLE, (kind.lower(), 4, 7)} and len(sizes) == 2


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"\xff\xd8\xff", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n", b"\0" * 99]
)
def test_what_is_no_picture_has_no_size(data: bytes) -> None:
    assert read_header(data) == UNREADABLE


def test_malformed_exif_leaves_the_picture_upright() -> None:
    for tail in (b"", b"II", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"):
        data = encoded(PIXELS, "JPEG", exif=b"Exif\0\0" + tail)
        assert read_header(data) == ("jpeg", 7, 4)
