"""Decoding at a fraction gives what decoding and resampling gives, nearly, and for a whole picture exactly."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ldm.data.decode import UnreadablePicture, decode
from ldm.data.pixels import decode_pixels
from ldm.data.transforms import fit
from tests.data.made import encoded, smooth


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 40}])
def test_a_whole_picture_is_what_pil_decodes(options: dict[str, int]) -> None:
    data = encoded(smooth(75, 43), "JPEG", **options)
    found = decode_pixels(data)
    np.testing.assert_array_equal(found.values, np.asarray(decode(data)))
    assert (found.height, found.width) == (43, 75)


@pytest.mark.parametrize("turned", range(1, 9))
def test_a_picture_on_its_side_is_set_upright_at_every_fraction(turned: int) -> None:
    tags = Image.Exif()
    tags[0x0112] = turned
    data = encoded(smooth(160, 96), "JPEG", exif=tags, quality=95)
    upright = np.asarray(decode(data))
    np.testing.assert_array_equal(decode_pixels(data).values, upright)
    half = decode_pixels(data, shown=(upright.shape[0] // 2, upright.shape[1] // 2))
    assert half.values.shape == (upright.shape[0] // 2, upright.shape[1] // 2, 3)
    assert (half.height, half.width) == upright.shape[:2]
    reference = np.asarray(Image.fromarray(upright).resize(half.values.shape[1::-1], Image.Resampling.BOX))
    assert np.abs(half.values.astype(int) - reference).mean() < 3  # another orientation is off by dozens


@pytest.mark.parametrize(
    ("shown", "margin", "decoded"),
    [
        ((100, 100), 1, (800, 1200)),
        ((401, 100), 1, (800, 1200)),
        ((400, 400), 1, (400, 600)),
        ((400, 400), 2, (800, 1200)),
        ((200, 200), 1, (200, 300)),
        ((199, 301), 1, (400, 600)),
        ((100, 100), 2, (200, 300)),
        ((100, 100), 1.01, (200, 300)),
        ((99, 99), 1, (100, 150)),
        ((3, 3), 1, (100, 150)),
    ],
)
def test_never_less_is_decoded_than_is_shown(
    shown: tuple[int, int], margin: float, decoded: tuple[int, int]
) -> None:
    data = encoded(np.zeros((800, 1200, 3), np.uint8), "JPEG")
    expected = (100, 150) if shown == (100, 100) and margin == 1 else decoded
    assert decode_pixels(data, shown=shown, margin=margin).values.shape[:2] == expected


@pytest.mark.parametrize(("margin", "off"), [(1.0, 1.6), (2.0, 0.5), (100.0, 0.01)])
def test_how_near_decoding_at_a_fraction_comes_to_resampling_the_whole(margin: float, off: float) -> None:
    """Grey levels on average between our result and PIL's antialiased resize of all pixels.

    docs/data.md has photographs. Where a part begins is a whole decoded pixel, so the reference begins there too.
    """
    errors = []
    for seed, (width, height) in enumerate([(640, 480), (500, 500), (333, 721), (1027, 768)]):
        scene = Image.fromarray(smooth(2 * width, 2 * height, seed))
        data = encoded(scene.resize((width, height), Image.Resampling.BILINEAR), "JPEG", quality=92)
        pixels = decode_pixels(data, shown=(128, 128), margin=margin)
        shown, _ = fit(pixels, (128, 128))
        side, n = min(width, height), pixels.fraction
        left, top = (round((length - side) / 2 / n) * n for length in (width, height))
        square = (left, top, left + side, top + side)
        reference = decode(data).crop(square).resize((128, 128), Image.Resampling.BICUBIC)
        errors.append(np.abs(shown.astype(int) - np.asarray(reference)).mean())
    assert np.mean(errors) < off, errors


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_other_formats_go_the_careful_way(kind: str) -> None:
    data = encoded(smooth(40, 30), kind)
    np.testing.assert_array_equal(decode_pixels(data, shown=(8, 8)).values, np.asarray(decode(data)))


def test_print_colours_and_grey_come_out_as_pil_has_them() -> None:
    grey = Image.fromarray(smooth(40, 30)[..., 0])
    for picture in (grey, Image.fromarray(smooth(40, 30)).convert("CMYK")):
        data = encoded(picture, "JPEG", quality=95)
        np.testing.assert_array_equal(decode_pixels(data).values, np.asarray(decode(data)))


def test_what_pil_refuses_is_refused_and_the_limit_holds_before_decoding() -> None:
    data = encoded(smooth(300, 200), "JPEG")
    for damaged in (b"", b"\xff\xd8\xff", data[:100], data[: len(data) // 2], b"<html>"):
        with pytest.raises(UnreadablePicture):
            decode_pixels(damaged, shown=(10, 10))
    with pytest.raises(UnreadablePicture, match="300 x 200 pixels are more than the limit of 59,999"):
        decode_pixels(data, max_pixels=59_999)
    assert decode_pixels(data, max_pixels=60_000).width == 300


def test_a_picture_of_160_megapixels_costs_no_memory() -> None:
    import resource

    head = encoded(Image.new("RGB", (8, 8)), "JPEG")
    at = head.index(b"\xff\xc0")
    huge = head[: at + 5] + (10_000).to_bytes(2, "big") + (16_000).to_bytes(2, "big") + head[at + 9 :]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadablePicture, match="16000 x 10000 pixels are more than the limit"):
        decode_pixels(huge, shown=(64, 64))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB; decoded it is 480 MB
