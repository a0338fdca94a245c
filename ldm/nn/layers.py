"""Small parts that several networks share."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nn.gelu import gelu_tanh


def sinusoidal(positions: Tensor, width: int, *, max_period: float = 10_000.0, shift: float = 0.0) -> Tensor:
    """Sine and cosine features of any shape of positions -> (..., width), float32 (1706.03762, section 3.5).

    With n = width / 2, frequencies fall from 1 to 1 / max_period in n - shift steps; all but the last for shift 0.
    """
    if width % 2:
        raise ValueError(f"sinusoidal features need an even width, not {width}")
    # Rounded in the order of the published networks: the angle of t = 1000 would else be off by up to 1e-4.
    ranks = torch.arange(width // 2, dtype=torch.float32, device=positions.device)
    angles = positions.float()[..., None] * torch.exp(-math.log(max_period) * ranks / (width // 2 - shift))
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
    """t (B,) in [0, 1] -> (B, width): sinusoids of 1000 t, then a two-layer MLP (2006.11239, appendix B).

    Args:
        width: Of the embedding.
        num_features: Sines and cosines.
        shift: See ``sinusoidal``.
    """

    def __init__(self, width: int, *, num_features: int = 256, shift: float = 0.0) -> None:
        super().__init__()
        self.num_features = num_features
        self.shift = shift
        self.mlp = nn.Sequential(nn.Linear(num_features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(sinusoidal(1000.0 * t, self.num_features, shift=self.shift))


class Activation(Protocol):
    """An elementwise nonlinearity."""

    def __call__(self, x: Tensor) -> Tensor: ...


class GELU:
    """x * Phi(x) (1606.08415) by its tanh formula, as GPT-2 and DiT have it: see ``gelu.py``."""

    def __call__(self, x: Tensor) -> Tensor:
        return gelu_tanh(x)


class SiLU:
    """x * sigmoid(x) (1606.08415, section 2).

    In bfloat16 on a CPU, forward and backward of ``GELU`` took 2 to 4 times as long: there a twentieth of a training
    step of a small transformer.
    """

    def __call__(self, x: Tensor) -> Tensor:
        return F.silu(x)


class FeedForward(nn.Module):
    """Linear, activation, Linear: (..., width) -> (..., width).

    Args:
        width: Channels, in and out.
        ratio: Hidden width, in widths.
        activation: ``GELU`` when None.
        gated: The first linear layer has a second half, whose activation multiplies the first (2002.05202): SwiGLU
            with ``SiLU``, GEGLU with ``GELU``. Half as many parameters again at the same ratio: 8/3 costs what 4 does.
    """

    def __init__(
        self, width: int, *, ratio: float = 4.0, activation: Activation | None = None, gated: bool = False
    ) -> None:
        super().__init__()
        hidden = int(width * ratio)
        self.gated = gated
        self.up = nn.Linear(width, 2 * hidden if gated else hidden)
        self.activation = activation or GELU()
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        if self.gated:
            value, gate = h.chunk(2, dim=-1)  # (..., hidden) each
            return self.down(value * self.activation(gate))
        return self.down(self.activation(h))


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight over the last dimension, in x's precision: under autocast torch leaves its fused path.

    Args:
        width: Of the last dimension.
        affine: Learn the weight; without it, it is 1.
    """

    def __init__(self, width: int, *, affine: bool = True) -> None:
        super().__init__(width, eps=1e-6, elementwise_affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, N, width) scaled and shifted by (B, 1, width) each (2212.09748, section 3.2)."""
    # Not addcmul, here and below: its backward pass multiplies all of x by 1 before it uses it.
    return torch.mul(x, 1 + scale).add_(shift)


def add_gated(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """x + gate * update: what a block adds to x (B, N, width), weighted channel by channel by gate (B, 1, width)."""
    return torch.mul(update, gate).add_(x)
