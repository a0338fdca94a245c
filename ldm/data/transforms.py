"""Pure functions from a decoded picture to what the network sees: one resampling, no hidden randomness."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Size = tuple[int, int]
"""(height, width) in pixels, as everywhere in this project; only PIL says it the other way round."""


class Cut(NamedTuple):
    """Which part of a picture is shown, in pixels of the whole picture once it is as small as what is shown."""

    top: int
    left: int
    height: int  # of the whole picture
    width: int

    def mirrored(self, shown_width: int) -> Cut:
        """The same cut seen from the mirrored picture: what was cut off on the right is now missing on the left."""
        return self._replace(left=self.width - shown_width - self.left)


def shrink(picture: Image.Image, size: int) -> Image.Image:
    """Antialiased, until the shorter side is ``size``; a smaller picture stays as it is."""
    shorter = min(picture.size)
    if shorter <= size:
        return picture
    width, height = (max(size, round(side * size / shorter)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def fit(picture: Image.Image, size: Size, *, along: float = 0.5) -> tuple[Image.Image, Cut]:
    """The largest part of the picture in the shape of ``size``, resampled once (antialiased) to it.

    Args:
        picture: RGB, any size.
        size: of the result.
        along: where the part lies on the side that is too long, 0 (left, top) to 1 (right, bottom).

    Returns:
        The result, and which part of the picture it is.
    """
    height, width = size
    whole_width, whole_height = picture.size
    if whole_width * height >= whole_height * width:  # too wide: the height is used in full
        part, scale = (width * whole_height / height, float(whole_height)), height / whole_height
    else:
        part, scale = (float(whole_width), height * whole_width / width), width / whole_width
    # whole pixels where they can be: what needs no resizing is not blurred
    left = min(float(round(along * (whole_width - part[0]))), whole_width - part[0])
    top = min(float(round(along * (whole_height - part[1]))), whole_height - part[1])
    box = (left, top, left + part[0], top + part[1])
    small = (max(height, round(whole_height * scale)), max(width, round(whole_width * scale)))
    cut = Cut(min(round(top * scale), small[0] - height), min(round(left * scale), small[1] - width), *small)
    return picture.resize((width, height), Image.Resampling.BICUBIC, box=box), cut


def mirror(picture: Image.Image) -> Image.Image:
    """Left and right exchanged."""
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def to_bytes(picture: Image.Image) -> Tensor:
    """RGB picture -> (3, H, W) uint8."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def to_floats(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> float32 in [-1, 1]; done once per batch, because bytes travel four times cheaper."""
    return images.float().div_(127.5).sub_(1.0)
