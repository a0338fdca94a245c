"""One resampling, no hidden randomness."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ldm.data.transforms import chance, mirror, pick, shrink, square, to_bytes, to_floats

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8))


def test_chances_are_uniform_repeatable_and_apart_by_every_part_of_their_name() -> None:
    draws = np.array([chance(0, "crop", f"key {i}", 0) for i in range(4000)])
    assert draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean() - 1 / 2) < 5 / np.sqrt(12 * 4000)
    names = [
        (0, "crop", "a", 0),
        (1, "crop", "a", 0),
        (0, "flip", "a", 0),
        (0, "crop", "b", 0),
        (0, "crop", "a", 1),
    ]
    assert len({chance(*name) for name in names}) == len(names)
    assert chance(*names[0]) == chance(*names[0])


def test_every_caption_has_its_turn() -> None:
    picked = [pick(["a", "b", "c"], seed=0, key="k", visit=visit) for visit in range(300)]
    assert all(70 < picked.count(caption) < 130 for caption in "abc")


def test_a_square_of_its_own_size_is_copied_to_the_pixel() -> None:
    for along in (0.0, 0.3, 0.5, 1.0):
        left = round(along * 32)
        np.testing.assert_array_equal(
            np.asarray(square(NOISE, 48, along=along)), np.asarray(NOISE)[:, left : left + 48]
        )


def test_the_square_lies_where_it_is_told_in_both_formats() -> None:
    wide = Image.new("L", (90, 30), 0)
    wide.paste(255, (0, 0, 30, 30))
    for picture in (wide.convert("RGB"), wide.rotate(-90, expand=True).convert("RGB")):
        # The filter looks one pixel over the square's edge, as if the whole picture had been resized.
        assert np.asarray(square(picture, 10, along=0.0)).min() > 230
        assert np.asarray(square(picture, 10, along=1.0)).max() == 0


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
    image = to_bytes(NOISE)
    assert image.dtype == torch.uint8 and image.shape == (3, 48, 80) and image.is_contiguous()
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(NOISE))
    floats = to_floats(torch.tensor([0, 255], dtype=torch.uint8))
    assert floats.tolist() == [-1.0, 1.0]
    torch.testing.assert_close(((to_floats(image) + 1) * 127.5).round().to(torch.uint8), image)
    assert np.array_equal(np.asarray(mirror(mirror(NOISE))), np.asarray(NOISE))
