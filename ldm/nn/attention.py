"""Attention as one object chosen by config.

Every object here maps q (B, heads, N, d), k and v (B, heads, M, d) and an optional mask (B, M), True where a key may be
looked at, to (B, heads, N, d). The projections belong to the networks; the kernel belongs here.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AttentionKernel(Protocol):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor: ...


class SDPA:
    """torch's fused scaled-dot-product attention: flash or memory-efficient kernels where the device has them."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        attn_mask = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, M)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight over the last dimension, in x's precision: under autocast torch leaves its fused path."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class MathAttention:
    """softmax(q k^T / sqrt(d)) v as it is written (1706.03762, eq. 1), in float32: the reference for the others."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            scores = q.float() @ k.float().transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, heads, N, M)
            if mask is not None:
                scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
            return (scores.softmax(dim=-1) @ v.float()).to(v.dtype)


class MatmulAttention:
    """Two matrix products in the inputs' precision around a float32 softmax.

    On CPUs the fused kernel's bfloat16 backward is slow on short sequences: at 16 tokens, 3 heads of 64, batch 64,
    forward and backward took 10.6 ms fused and 1.4 ms here; at 256 tokens, 6 heads, batch 16, 72 ms and 54 ms (two
    cores). On a GPU, and wherever N * M is large, prefer ``SDPA``: this one holds all scores in memory.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = (q @ k.transpose(-2, -1)).float() / math.sqrt(q.shape[-1])  # (B, heads, N, M)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
        return scores.softmax(dim=-1).to(v.dtype) @ v


class SelfAttention(nn.Module):
    """Multi-head self-attention over (B, N, width).

    Args:
        width: Channels, in and out.
        num_heads: Divides ``width``.
        qk_norm: RMS-normalise queries and keys per head (2302.05442, section 2), which keeps logits bounded under bf16
            and high learning rates.
        kernel: See this module's docstring; ``SDPA`` when None.
    """

    def __init__(
        self, *, width: int, num_heads: int, qk_norm: bool = True, kernel: AttentionKernel | None = None
    ) -> None:
        super().__init__()
        self.num_heads = check_heads(width, num_heads)
        self.kernel = kernel or SDPA()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.q_norm, self.k_norm = qk_norms(width // num_heads, enabled=qk_norm)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )  # 3 x (B, heads, N, d)
        x = self.kernel(self.q_norm(q), self.k_norm(k), v, mask)
        return self.out(x.transpose(1, 2).flatten(2))  # (B, N, width)


class CrossAttention(nn.Module):
    """Multi-head attention of (B, N, width) to a context (B, M, context_width)."""

    def __init__(
        self,
        *,
        width: int,
        context_width: int,
        num_heads: int,
        qk_norm: bool = True,
        kernel: AttentionKernel | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = check_heads(width, num_heads)
        self.kernel = kernel or SDPA()
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(context_width, 2 * width)
        self.out = nn.Linear(width, width)
        self.q_norm, self.k_norm = qk_norms(width // num_heads, enabled=qk_norm)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, d)
        k, v = (
            self.kv(context).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )  # 2 x (B, heads, M, d)
        x = self.kernel(self.q_norm(q), self.k_norm(k), v, mask)
        return self.out(x.transpose(1, 2).flatten(2))  # (B, N, width)


def check_heads(width: int, num_heads: int) -> int:
    if num_heads < 1 or width % num_heads:
        raise ValueError(
            f"num_heads={num_heads} does not divide width={width}; choose a divisor of the width"
        )
    return num_heads


def qk_norms(head_width: int, *, enabled: bool) -> tuple[nn.Module, nn.Module]:
    if not enabled:
        return nn.Identity(), nn.Identity()
    return RMSNorm(head_width), RMSNorm(head_width)
