"""How a transformer over patches is told where each patch stands: objects that a config chooses from.

Every object here answers two questions about a grid of height x width tokens: which features are added to the tokens
on their way in, and by which rotations queries and keys are turned. ``None`` means neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ldm.nn.layers import grid_positions
from ldm.nn.rope import image_positions, rotations


class Positions(Protocol):
    def features(self, height: int, width: int, channels: int, *, device: torch.device) -> Tensor | None:
        """(height * width, channels) to add to the tokens, float32."""
        ...

    def rotations(self, height: int, width: int, head_width: int, *, device: torch.device) -> Tensor | None:
        """(height * width, head_width / 2, 2) for ``rope.rotate``, float32."""
        ...


@dataclass(frozen=True, kw_only=True)
class CentredSinCos:
    """Fixed features of rows and columns counted from the picture's middle: a wider picture keeps the middle's."""

    def features(self, height: int, width: int, channels: int, *, device: torch.device) -> Tensor:
        return grid_positions(height, width, channels, device=device)

    def rotations(self, height: int, width: int, head_width: int, *, device: torch.device) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class SinCos:
    """Fixed features as DiT and PixArt-alpha have them (2212.09748, section 3.2; 2310.00426): counted from a corner.

    A grid of ``base_size`` tokens a side has the positions 0, 1, ..., divided by ``scale``; one of another size, or of
    two different sides, is stretched over the same span.

    Args:
        base_size: Tokens a side at the trained size.
        scale: Of the span: a network grown from one trained on half as many tokens a side has 2.

    Raises:
        ValueError: Either is not positive.
    """

    base_size: int
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.base_size < 1 or self.scale <= 0:
            raise ValueError(f"base_size={self.base_size} and scale={self.scale} must be positive")

    def features(self, height: int, width: int, channels: int, *, device: torch.device) -> Tensor:
        def along(n: int) -> Tensor:
            return torch.arange(n, device=device) * (self.base_size / (n * self.scale))

        return sincos_grid(along(height), along(width), channels)

    def rotations(self, height: int, width: int, head_width: int, *, device: torch.device) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Queries and keys turned by their row and column, half of a head's channels each (2104.09864, on two axes).

    Only differences of positions count, so any size goes; sizes much larger than the trained ones turn further than
    was ever seen.

    Args:
        theta: The slowest pair turns about once in 2 pi * theta tokens.
    """

    theta: float = 100.0

    def features(self, height: int, width: int, channels: int, *, device: torch.device) -> None:
        return None

    def rotations(self, height: int, width: int, head_width: int, *, device: torch.device) -> Tensor:
        if head_width % 4:
            raise ValueError(
                f"rotary positions on two axes need heads of a width divisible by 4, not {head_width}"
            )
        positions = image_positions(height, width, device=device)
        return rotations(positions, (head_width // 2, head_width // 2), theta=self.theta)


def sincos_grid(rows: Tensor, columns: Tensor, channels: int) -> Tensor:
    """Features of a grid with rows at (h,) and columns at (w,): (h*w, channels), float32.

    The first half tells the column and the second the row; in each, sines come first, with the frequencies
    10000^(-i / n), i = 0 ... n - 1 (1706.03762, section 3.5, on two axes).
    """
    if channels % 4:
        raise ValueError(
            f"sine and cosine features of rows and columns need channels divisible by 4, not {channels}"
        )

    def features(positions: Tensor) -> Tensor:
        precision = torch.float32 if positions.device.type == "mps" else torch.float64
        n = channels // 4
        frequencies = 10_000.0 ** (-torch.arange(n, dtype=precision, device=positions.device) / n)
        angles = positions.to(precision)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1).float()  # (h or w, channels / 2)

    by_row = features(rows)[:, None].expand(-1, len(columns), -1)
    by_column = features(columns)[None].expand(len(rows), -1, -1)
    return torch.cat([by_column, by_row], dim=-1).flatten(0, 1)
