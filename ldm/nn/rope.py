"""Rotary position embedding (RoFormer, 2104.09864): queries and keys turned by angles that grow with their position.

Rotations travel as one float32 tensor (..., d/2, 2) of cosines and sines. ``rotate`` turns neighbouring channels, so
channel pair (2i, 2i + 1) belongs to rotation i.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rotations(positions: Tensor, widths: Sequence[int], *, theta: float = 10_000.0) -> Tensor:
    """Axial rotations: each axis of the positions turns channels of its own (2104.09864, section 3.2.2, per axis).

    Args:
        positions: (..., A) coordinates on A axes.
        widths: How many of a head's d channels belong to each axis: A even numbers, d in sum.
        theta: Pair i of an axis with n channels turns by position * theta^(-2i / n).

    Returns:
        (..., d/2, 2), float32.

    Raises:
        ValueError: Another number of axes, or an odd width.
    """
    if len(widths) != positions.shape[-1] or any(width % 2 for width in widths):
        raise ValueError(
            f"widths={list(widths)} must be {positions.shape[-1]} even numbers, one for each axis"
        )
    # Angles reach thousands: in float32 their rounding would already show. Apple's GPUs have no float64.
    precision = torch.float32 if positions.device.type == "mps" else torch.float64
    angles = []
    for position, width in zip(positions.to(precision).unbind(-1), widths, strict=True):
        exponents = torch.arange(0, width, 2, dtype=precision, device=positions.device) / width
        angles.append(position[..., None] * theta**-exponents)  # (..., width/2)
    angle = torch.cat(angles, dim=-1)  # (..., d/2)
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float()


def image_positions(height: int, width: int, *, device: torch.device) -> Tensor:
    """Row and column of each token of a grid: (height * width, 2), int64, row by row."""
    rows = torch.arange(height, device=device)[:, None].expand(height, width)
    columns = torch.arange(width, device=device)[None].expand(height, width)
    return torch.stack([rows, columns], dim=-1).flatten(0, 1)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """x (..., d) with each pair of neighbours turned; rotation broadcasts against (..., d/2, 2). Dtype of x.

    For q (B, N, heads, d) and rotations (N, d/2, 2), give ``rotation[:, None]``; for q (B, heads, N, d) as it is.
    """
    pairs = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))  # (..., d/2, 2)
    if torch.compiler.is_compiling():  # the compiler fuses real arithmetic, but not complex
        (a, b), (cos, sin) = pairs.unbind(-1), rotation.unbind(-1)
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
    else:  # one kernel instead of six
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation))
    return turned.flatten(-2).to(x.dtype)
