"""Pure functions from decoded pixels to what the network sees: one resampling, no hidden randomness."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ldm.data.pixels import Pixels, Size

_IN_CACHE = 1 << 18  # floats: a megabyte; with fewer at a time, calling torch is what takes long


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


def fit(picture: Pixels, size: Size, *, along: float = 0.5) -> tuple[np.ndarray, Cut]:
    """The largest part of the picture in the shape of ``size``, resampled once (antialiased) to it.

    The part begins at a whole pixel of what was decoded: what needs no resizing is not blurred.

    Args:
        picture: any size; perhaps decoded at a fraction of it.
        size: of the result.
        along: where the part lies on the side that is too long, 0 (left, top) to 1 (right, bottom).

    Returns:
        The result, (height, width, 3) uint8, and which part of the picture it is.
    """
    height, width = size
    whole_height, whole_width = picture.height, picture.width
    if picture.values.shape[:2] == size and whole_height * width == whole_width * height:  # as it comes
        return picture.values, Cut(0, 0, height, width)
    if whole_width * height >= whole_height * width:  # too wide: the height is used in full
        part, scale = (float(whole_height), width * whole_height / height), height / whole_height
    else:
        part, scale = (height * whole_width / width, float(whole_width)), width / whole_width
    top = _begin(along, whole_height - part[0], picture.fraction)
    left = _begin(along, whole_width - part[1], picture.fraction)
    small = (max(height, round(whole_height * scale)), max(width, round(whole_width * scale)))
    cut = Cut(
        min(round(top * picture.fraction * scale), small[0] - height),
        min(round(left * picture.fraction * scale), small[1] - width),
        *small,
    )
    part = (part[0] / picture.fraction, part[1] / picture.fraction)
    bottom, right = top + math.ceil(part[0] - 1e-6), left + math.ceil(part[1] - 1e-6)
    return resample(picture.values[top:bottom, left:right], size, part=part), cut


def _begin(along: float, room: float, fraction: int) -> int:
    """Where on a side a part begins, in decoded pixels."""
    return min(round(along * room / fraction), int(room / fraction + 1e-6))


def resample(values: np.ndarray, size: Size, *, part: tuple[float, float] | None = None) -> np.ndarray:
    """Bicubic and antialiased: what PIL makes of it, several times faster.

    Args:
        values: (h, w, 3) uint8.
        size: of the result.
        part: height and width of what is shown, from the top left; it may end within the last pixel. None: all.

    Returns:
        (height, width, 3) uint8.
    """
    whole = values.shape[:2]
    if part is None or (abs(part[0] - whole[0]) < 1e-6 and abs(part[1] - whole[1]) < 1e-6):
        part = whole
    if part == size:
        return values
    # Made four-dimensional first, so that torch knows the order in memory and leaves it: twice as fast.
    pixels = torch.from_numpy(np.ascontiguousarray(values))[None].permute(0, 3, 1, 2)  # (1, 3, h, w)
    if part == whole:
        small = interpolate(pixels, size=size, mode="bicubic", antialias=True)
    else:  # a little more, so that rounding down never leaves a pixel less
        factors = [side / length * (1 + 1e-9) for side, length in zip(size, part, strict=True)]
        small = interpolate(pixels, scale_factor=factors, mode="bicubic", antialias=True)
    return small[0, :, : size[0], : size[1]].permute(1, 2, 0).numpy()


def mirror(values: np.ndarray) -> np.ndarray:
    """(h, w, 3), left and right exchanged."""
    return values[:, ::-1]


def to_bytes(values: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) uint8; the memory keeps its order, so that nothing is moved before the batch is."""
    return torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1)


def to_floats(images: Tensor, *, out: Tensor | None = None) -> Tensor:
    """(B, 3, H, W) uint8 -> float32 in [-1, 1], the memory in the same order.

    Done once per batch, because bytes travel four times cheaper.

    Args:
        images: on any device.
        out: where to, of the same shape and order in memory; None for memory of its own.
    """
    floats = torch.empty_like(images, dtype=torch.float32) if out is None else out
    few = len(images)
    if images.device.type == "cpu":  # so few at a time that they stay in the cache for all three passes
        few = max(1, _IN_CACHE // max(1, images[:1].numel()))
    for first in range(0, len(images), max(1, few)):
        # A product takes a third of a division's time; the ends come out as -1 and 1 exactly.
        floats[first : first + few].copy_(images[first : first + few]).sub_(127.5).mul_(1 / 127.5)
    return floats
