"""Small parts that several networks share."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoidal(positions: Tensor, width: int, *, max_period: float = 10_000.0) -> Tensor:
    """Sine and cosine features of any shape of positions -> (..., width), float32 (1706.03762, section 3.5)."""
    if width % 2:
        raise ValueError(f"sinusoidal features need an even width, not {width}")
    exponents = torch.arange(width // 2, dtype=torch.float32, device=positions.device) / (width // 2)
    angles = positions.float()[..., None] * torch.exp(-math.log(max_period) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def grid_positions(height: int, width: int, channels: int, *, device: torch.device) -> Tensor:
    """Fixed 2-D position features of an h x w grid: (h*w, channels), one half for rows and one for columns.

    Positions are centred, so that a wider picture adds positions at both ends and keeps the middle's.
    """
    rows = torch.arange(height, device=device) - (height - 1) / 2
    columns = torch.arange(width, device=device) - (width - 1) / 2
    row_features = sinusoidal(rows, channels // 2, max_period=100.0)[:, None].expand(-1, width, -1)
    column_features = sinusoidal(columns, channels // 2, max_period=100.0)[None].expand(height, -1, -1)
    return torch.cat([row_features, column_features], dim=-1).flatten(0, 1)


class TimeEmbedding(nn.Module):
    """t (B,) in [0, 1] -> (B, width): sinusoids of 1000 t, then a two-layer MLP (2006.11239, appendix B)."""

    def __init__(self, width: int, *, num_features: int = 256) -> None:
        super().__init__()
        self.num_features = num_features
        self.mlp = nn.Sequential(nn.Linear(num_features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(sinusoidal(1000.0 * t, self.num_features))


class Activation(Protocol):
    """An elementwise nonlinearity."""

    def __call__(self, x: Tensor) -> Tensor: ...


class GELU:
    """x * Phi(x) (1606.08415) by its tanh formula, as GPT-2 and DiT have it."""

    def __call__(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


class SiLU:
    """x * sigmoid(x) (1606.08415, section 2).

    In bfloat16 on a CPU, forward and backward of ``GELU`` took 2 to 4 times as long: there a twentieth of a training
    step of a small transformer.
    """

    def __call__(self, x: Tensor) -> Tensor:
        return F.silu(x)


class FeedForward(nn.Module):
    """Linear, activation, Linear: (..., width) -> (..., width); ``GELU`` when ``activation`` is None."""

    def __init__(self, width: int, *, ratio: float = 4.0, activation: Activation | None = None) -> None:
        super().__init__()
        hidden = int(width * ratio)
        self.up = nn.Linear(width, hidden)
        self.activation = activation or GELU()
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, N, width) scaled and shifted by (B, 1, width) each (2212.09748, section 3.2)."""
    return torch.addcmul(shift, x, 1 + scale)
