"""One resampling, no hidden randomness."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.pixels import Pixels
from ldm.data.transforms import Cut, fit, mirror, resample, shrink, to_bytes, to_floats
from tests.data.made import smooth


def whole(picture: Image.Image | np.ndarray) -> Pixels:
    values = np.array(picture)
    return Pixels(values, *values.shape[:2])


def square(picture: Image.Image, side: int, *, along: float = 0.5) -> np.ndarray:
    return fit(whole(picture), (side, side), along=along)[0]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8))


def test_a_square_of_its_own_size_is_copied_to_the_pixel() -> None:
    for along in (0.0, 0.3, 0.5, 1.0):
        left = round(along * 32)
        np.testing.assert_array_equal(square(NOISE, 48, along=along), np.asarray(NOISE)[:, left : left + 48])


def test_the_square_lies_where_it_is_told_in_both_formats() -> None:
    wide = Image.new("L", (90, 30), 0)
    wide.paste(255, (0, 0, 30, 30))
    for picture in (wide.convert("RGB"), wide.rotate(-90, expand=True).convert("RGB")):
        assert square(picture, 10, along=0.0).min() == 255
        assert square(picture, 10, along=1.0).max() == 0


def test_the_largest_part_in_the_wanted_shape_is_shown() -> None:
    """Every pixel of the result is a known place of the picture: a ramp says which."""
    ramp = np.zeros((300, 500, 3))
    ramp[..., 0], ramp[..., 1] = np.linspace(0, 250, 500), np.linspace(0, 250, 300)[:, None]
    picture = whole(ramp.round().astype(np.uint8))
    for size in ((30, 50), (60, 20), (20, 60), (45, 50), (300, 300), (600, 1000), (31, 57)):
        for along in (0.0, 0.37, 1.0):
            shown, cut = fit(picture, size, along=along)
            assert shown.shape == (*size, 3)
            scale = max(size[0] / 300, size[1] / 500)
            assert abs(cut.height - 300 * scale) <= 1 and abs(cut.width - 500 * scale) <= 1
            assert min(cut.height - size[0], cut.width - size[1]) == 0  # one side is used in full
            assert 0 <= cut.top <= cut.height - size[0] and 0 <= cut.left <= cut.width - size[1]
            middle = shown[size[0] // 2, size[1] // 2].astype(float)
            x, y = (cut.left + size[1] // 2 + 0.5) / scale - 0.5, (cut.top + size[0] // 2 + 0.5) / scale - 0.5
            off = 0.6 + 250 / 300 / scale  # half a grey level, and the cut's rounding to a pixel
            assert abs(middle[0] - x / 499 * 250) < off and abs(middle[1] - y / 299 * 250) < off


def test_what_is_cut_off_a_mirrored_picture_counts_from_its_own_left() -> None:
    shown, cut = fit(whole(NOISE), (48, 48), along=0.25)
    assert cut == Cut(top=0, left=8, height=48, width=80)
    assert cut.mirrored(48) == Cut(top=0, left=24, height=48, width=80)
    mirrored, from_left = fit(whole(mirror(np.array(NOISE))), (48, 48), along=0.75)
    assert from_left == cut.mirrored(48)
    assert np.array_equal(mirror(mirrored), shown)


def test_resizing_is_antialiased() -> None:
    stripes = Image.fromarray(np.tile(np.array([[[0], [255]]], np.uint8), (64, 32, 3)))
    for small in (square(stripes, 16), shrink(stripes, 16)):
        inside = np.asarray(small)[:, 1:-1].astype(int)  # at the border there is half a stripe more
        assert np.abs(inside - 127).max() <= 3


def test_shrinking_keeps_the_shape_and_never_enlarges() -> None:
    assert shrink(NOISE, 24).size == (40, 24)
    assert shrink(NOISE.rotate(90, expand=True), 24).size == (24, 40)
    assert shrink(NOISE, 48) is NOISE
    assert shrink(NOISE, 100) is NOISE


def test_bytes_become_floats_from_minus_one_to_one() -> None:
    image = to_bytes(np.array(NOISE))
    assert image.dtype == torch.uint8 and image.shape == (3, 48, 80)
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(NOISE))
    floats = to_floats(torch.tensor([0, 255], dtype=torch.uint8))
    assert floats.tolist() == [-1.0, 1.0]
    torch.testing.assert_close(((to_floats(image) + 1) * 127.5).round().to(torch.uint8), image)
    assert np.array_equal(mirror(mirror(np.array(NOISE))), np.array(NOISE))


@pytest.mark.parametrize("part", [(166.5, 199.3), (166.0, 199.9), (165.01, 200.0), (167.0, 200.0)])
@pytest.mark.parametrize("size", [(128, 100), (31, 57), (300, 400)])
def test_resampling_is_pils_also_of_parts_that_end_within_a_pixel(
    part: tuple[float, float], size: tuple[int, int]
) -> None:
    values = smooth(200, 167)[: int(np.ceil(part[0])), : int(np.ceil(part[1]))]
    box = (0, 0, part[1], part[0])
    reference = Image.fromarray(values).resize(size[::-1], Image.Resampling.BICUBIC, box=box)
    off = np.abs(resample(values, size, part=part).astype(int) - np.asarray(reference))
    assert off.max() <= 2 and off.mean() < 0.02
