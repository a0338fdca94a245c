"""Pure functions from a decoded picture to what the network sees: one resampling, no hidden randomness."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.randomness import address


def chance(seed: int, purpose: str, key: str, visit: int) -> float:
    """A number in [0, 1) for one choice about one sample; the same in every process, at every restart."""
    return (address(seed, purpose, key, visit) >> 10) / 2**53


def pick(captions: list[str], *, seed: int, key: str, visit: int) -> str:
    """One of several captions, drawn anew for each visit."""
    return captions[int(chance(seed, "caption", key, visit) * len(captions))]


def shrink(picture: Image.Image, size: int) -> Image.Image:
    """Antialiased, until the shorter side is ``size``; a smaller picture stays as it is."""
    shorter = min(picture.size)
    if shorter <= size:
        return picture
    width, height = (max(size, round(side * size / shorter)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def square(picture: Image.Image, size: int, *, along: float = 0.5) -> Image.Image:
    """The largest square of the picture, resampled once (antialiased) to ``size``.

    Args:
        picture: RGB, any size.
        size: of the result, in pixels.
        along: where the square lies on the longer side, 0 (left, top) to 1 (right, bottom).
    """
    side = min(picture.size)
    left, top = (round(along * (length - side)) for length in picture.size)  # whole pixels: none is blurred
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def mirror(picture: Image.Image) -> Image.Image:
    """Left and right exchanged."""
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def to_bytes(picture: Image.Image) -> Tensor:
    """RGB picture -> (3, H, W) uint8."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def to_floats(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> float32 in [-1, 1]; done once per batch, because bytes travel four times cheaper."""
    return images.float().div_(127.5).sub_(1.0)
