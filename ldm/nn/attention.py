"""Attention as one object chosen by config.

Every object here maps q (B, heads, N, d), k and v (B, heads, M, d) and an optional mask (B, M), True where a key may be
looked at, to (B, heads, N, d). The projections belong to the networks; the kernel belongs here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nn.layers import RMSNorm
from ldm.nn.rope import rotate

CPU_HEAD_WIDTH = 16  # narrower heads are not faster there


class AttentionKernel(Protocol):
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor: ...


class SDPA:
    """torch's fused scaled-dot-product attention: flash or memory-efficient kernels where the device has them.

    On a CPU, matrix products with less than 16 columns are much slower than with 16: narrow heads are filled up with
    zeros. Forward and backward of 1024 tokens with heads of 8 took 477 ms as they are and 233 ms filled up.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        attn_mask = None if mask is None else mask[:, None, None, :]  # (B, 1, 1, M)
        width = q.shape[-1]
        if q.device.type != "cpu" or width >= CPU_HEAD_WIDTH:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        q, k, v = (F.pad(x, (0, CPU_HEAD_WIDTH - width)) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, scale=width**-0.5)[..., :width]


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


class XFormers:
    """xformers' memory-efficient attention, which picks the fastest of several GPU kernels.

    Raises:
        ValueError: There is no GPU, or xformers is not installed or was built for another torch.
    """

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise ValueError(_unavailable("XFormers", "it needs an NVIDIA GPU, and torch sees none"))
        try:
            from xformers.ops import memory_efficient_attention
        except (ImportError, OSError) as error:
            reason = f"xformers cannot be imported ({error}); install it with pip install 'ldm[xformers]'"
            raise ValueError(_unavailable("XFormers", reason)) from error
        try:  # a build for another torch can be imported, but has no kernels
            memory_efficient_attention(*torch.zeros(3, 1, 8, 1, 8, device="cuda", dtype=torch.bfloat16))
        except (NotImplementedError, RuntimeError) as error:
            reason = f"its kernels do not run here: {str(error).strip().splitlines()[0]}"
            raise ValueError(_unavailable("XFormers", reason)) from error
        self.attention = memory_efficient_attention

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        bias = None
        if mask is not None:
            num_keys = mask.shape[-1]
            bias = q.new_zeros(mask.shape[0], 1, 1, -(-num_keys // 8) * 8)[
                ..., :num_keys
            ]  # rows aligned to 8
            bias = bias.masked_fill_(~mask[:, None, None, :], -torch.inf)
            bias = bias.expand(-1, q.shape[1], q.shape[2], -1)  # (B, heads, N, M)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, N or M, heads, d)
        return self.attention(q, k, v, attn_bias=bias).transpose(1, 2)


class Flex:
    """torch's flex_attention, compiled: one generated kernel with the mask inside.

    Raises:
        ValueError: There is no GPU.
    """

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            reason = "torch's flex_attention has a backward on GPUs only, and torch sees none"
            raise ValueError(_unavailable("Flex", reason))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return _compiled_flex_attention()(q, k, v)

        def seen(score: Tensor, b: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return torch.where(mask[b, key], score, -torch.inf)

        return _compiled_flex_attention()(q, k, v, score_mod=seen)


@cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _unavailable(kernel: str, reason: str) -> str:
    return (
        f"attention {kernel} is not available: {reason}. Use network/attention=sdpa: what is computed and the weights "
        f"do not depend on it"
    )


class SelfAttention(nn.Module):
    """Multi-head self-attention over (B, N, width).

    Args:
        width: Channels, in and out.
        num_heads: Divides ``width``.
        qk_norm: RMS-normalise queries and keys per head (2302.05442, section 2), which keeps logits bounded under bf16
            and high learning rates.
        bias: Of the projections to queries, keys and values.
        kernel: See this module's docstring; ``SDPA`` when None.
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        qk_norm: bool = True,
        bias: bool = True,
        kernel: AttentionKernel | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = check_heads(width, num_heads)
        self.kernel = kernel or SDPA()
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width)
        self.q_norm, self.k_norm = qk_norms(width // num_heads, enabled=qk_norm)

    def forward(self, x: Tensor, mask: Tensor | None = None, rotation: Tensor | None = None) -> Tensor:
        """x (B, N, width), mask (B, N), rotation (N, d/2, 2) of ``ldm/nn/rope.py`` -> (B, N, width)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, heads, d)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B, heads, N, d) each
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        x = self.kernel(q, k, v, mask)
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
        bias: bool = True,
        kernel: AttentionKernel | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = check_heads(width, num_heads)
        self.kernel = kernel or SDPA()
        self.q = nn.Linear(width, width, bias=bias)
        self.kv = nn.Linear(context_width, 2 * width, bias=bias)
        self.out = nn.Linear(width, width)
        self.q_norm, self.k_norm = qk_norms(width // num_heads, enabled=qk_norm)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, d)
        kv = self.kv(context).unflatten(-1, (2, self.num_heads, -1))  # (B, M, 2, heads, d)
        k, v = (part.transpose(1, 2) for part in kv.unbind(2))  # (B, heads, M, d) each
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
