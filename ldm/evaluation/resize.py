"""How pictures come to the size that a feature network wants. Scores move with it more than with many a model change.

clean-fid's convention (Parmar et al. 2022, 2104.11222) is the default everywhere: antialiased, in floats, on bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Resize(Protocol):
    """To a square."""

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, 3, size, size) float32 in [0, 255]."""
        ...


@dataclass(frozen=True, kw_only=True)
class CleanBicubic:
    """Antialiased bicubic, as Pillow's on floats, clipped, not rounded: clean-fid's (2104.11222, section 3).

    Args:
        size: Side in pixels.
    """

    size: int

    def __call__(self, images: Tensor) -> Tensor:
        if images.shape[-2:] == (self.size, self.size):
            return images.float()
        # torch's antialiased bicubic is Pillow's own filter, and takes a batch on any device.
        resized = F.interpolate(
            images.float(), (self.size, self.size), mode="bicubic", antialias=True, align_corners=False
        )
        return resized.clamp(0, 255)

    def __str__(self) -> str:
        return f"bicubic {self.size}, antialiased"


@dataclass(frozen=True, kw_only=True)
class TensorflowBilinear:
    """Not antialiased, corners as TensorFlow 1 placed them: that of the first published FIDs, for comparing with them.

    Args:
        size: Side in pixels.
    """

    size: int

    def __call__(self, images: Tensor) -> Tensor:
        x = images.float()
        for dim in (-2, -1):
            x = _bilinear(x, self.size, dim)
        return x

    def __str__(self) -> str:
        return f"bilinear {self.size}, TensorFlow 1"


def _bilinear(x: Tensor, size: int, dim: int) -> Tensor:
    """One side to ``size``: output i looks at place i * length / size, the last pixel going on for ever."""
    length = x.shape[dim]
    places = torch.arange(size, dtype=torch.float32, device=x.device) * (length / size)
    low = places.floor().long().clamp(max=length - 1)
    high = (low + 1).clamp(max=length - 1)
    share = places - low
    if dim == -2:
        share = share[:, None]
    return x.index_select(dim, low) * (1 - share) + x.index_select(dim, high) * share
