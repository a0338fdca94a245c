from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.commands.inputs import input_size, read_inputs, tensors

CPU = torch.device("cpu")


def test_pixels_come_back_as_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    inputs = read_inputs({"image": str(tmp_path / "x.png")})
    assert input_size(inputs, 2) == [4, 6]
    x = tensors(inputs, (4, 6), CPU)["image"]
    assert x.shape == (1, 3, 4, 6)
    assert ((x[0] + 1) * 127.5).round().permute(1, 2, 0).numpy().astype(np.uint8).tolist() == pixels.tolist()


def test_a_mask_is_grey_and_its_transparent_parts_stay(tmp_path: Path) -> None:
    Image.new("RGB", (4, 2)).save(tmp_path / "x.png")
    mask = np.zeros((2, 4, 4), dtype=np.uint8)
    mask[..., :3] = 255  # white everywhere, but seen in the right half only
    mask[:, 2:, 3] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    inputs = read_inputs({"image": str(tmp_path / "x.png"), "mask": str(tmp_path / "m.png")})
    x = tensors(inputs, (2, 4), CPU)["mask"]
    assert x.shape == (1, 1, 2, 4)
    torch.testing.assert_close(x[0, 0, 0], torch.tensor([0.0, 0.0, 1.0, 1.0]))


def test_pictures_are_cropped_and_not_squeezed(tmp_path: Path) -> None:
    """A square in the middle of a wide picture stays a square."""
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, 20:40] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    x = tensors(read_inputs({"image": str(tmp_path / "x.png")}), (10, 10), CPU)["image"]
    assert float(x.mean()) > 0.9


def test_no_pictures_have_no_size() -> None:
    assert input_size({}, 8) is None and tensors({}, (8, 8), CPU) == {}


def test_the_nearest_size_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (70, 3)).save(tmp_path / "x.png")
    with pytest.raises(
        ValueError, match=r"70x3 pixels, and this run needs multiples of 8: give image_size=\[8,72\]"
    ):
        input_size(read_inputs({"image": str(tmp_path / "x.png")}), 8)
