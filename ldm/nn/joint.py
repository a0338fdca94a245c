"""Joint attention: text and picture as two streams of tokens with weights of their own, and one attention over both.

What the double-stream blocks of MMDiT (2403.03206, figure 2b) and of Flux have in common.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm.nn.attention import AttentionKernel, check_heads, qk_norms
from ldm.nn.layers import FeedForward, add_gated, modulate
from ldm.nn.rope import rotate

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, (B, N, heads, d) each."""


class Stream(nn.Module):
    """What a block holds for one stream: its modulation, projections and feed-forward.

    Args:
        width: Channels, in and out.
        num_heads: Divides ``width``.
        qk_norm: RMS-normalise queries and keys per head.
        num_modulations: Vectors of ``width`` that the block draws from the conditioning vector for this stream; the
            first six are shift and scale before attention, gate after it, shift, scale and gate of the feed-forward.
    """

    def __init__(self, *, width: int, num_heads: int, qk_norm: bool, num_modulations: int = 6) -> None:
        super().__init__()
        self.num_heads = check_heads(width, num_heads)
        self.num_modulations = num_modulations
        self.modulation = nn.Linear(width, num_modulations * width)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = qk_norms(width // num_heads, enabled=qk_norm)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.feed_forward = FeedForward(width)

    def modulations(self, c: Tensor) -> tuple[Tensor, ...]:
        """c (B, width), activated -> ``num_modulations`` times (B, 1, width)."""
        return self.modulation(c)[:, None].chunk(self.num_modulations, dim=-1)

    def heads(self, x: Tensor) -> Heads:
        """x (B, N, width), normed and modulated -> q, k, v (B, N, heads, d)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        return self.q_norm(q), self.k_norm(k), v

    def transform(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        """The feed-forward with its residual: x (B, N, width) -> same."""
        return add_gated(x, gate, self.feed_forward(modulate(self.norm2(x), shift, scale)))


def attend(
    kernel: AttentionKernel, heads: Heads, *, mask: Tensor | None, rotation: Tensor | None = None
) -> Tensor:
    """q (B, N, heads, d), k and v (B, M, heads, d), mask (B, M), rotation (M, d/2, 2) -> (B, N, width).

    The queries are of the last N of the M tokens.
    """
    q, k, v = heads
    if rotation is not None:
        q, k = rotate(q, rotation[-q.shape[1] :, None]), rotate(k, rotation[:, None])
    x = kernel(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)  # (B, heads, N, d)
    return x.transpose(1, 2).flatten(2)


def attend_jointly(
    kernel: AttentionKernel, text: Heads, image: Heads, *, mask: Tensor | None, rotation: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One attention over both streams, the text standing before the picture.

    text (B, L, heads, d) and image (B, N, heads, d), mask (B, L + N), rotation (L + N, d/2, 2) -> what the text's and
    the picture's tokens found, (B, L, width) and (B, N, width).
    """
    length, num_patches = text[0].shape[1], image[0].shape[1]
    q, k, v = (torch.cat(pair, dim=1) for pair in zip(text, image, strict=True))  # (B, L + N, heads, d) each
    found = attend(kernel, (q, k, v), mask=mask, rotation=rotation)
    from_text, from_image = found.split([length, num_patches], dim=1)
    return (
        from_text.contiguous(),
        from_image.contiguous(),
    )  # what follows is linear, and faster on one piece of memory


def joint_mask(mask: Tensor, num_patches: int) -> Tensor:
    """The text's mask (B, L) -> (B, L + N): every patch may be looked at."""
    return torch.cat([mask, mask.new_ones(len(mask), num_patches)], dim=1)
