"""Frozen text encoders for a plan: parameters and operations of the real ones, without the packages they are from.

Importing those takes longer than all the rest of a plan. That sizes and costs agree is tested against them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm.interfaces import Conditioning
from ldm.nn.attention import MatmulAttention, SelfAttention
from ldm.nn.blocks import HasBlocks
from ldm.nn.layers import FeedForward


class PlannedText(nn.Module):
    """Base: captions -> tokens of its length, through ``blocks``.

    Args:
        width: D.
        pooled_width: P.
        length: L.
        blocks: Each (B, L, D) -> same.
        num_run: How many of them are run, where an inner layer's output is all that is wanted.
        others: Parameters beside them, by shape.
        dtype: Of the weights and of what is computed.
    """

    def __init__(
        self,
        *,
        width: int,
        pooled_width: int,
        length: int,
        blocks: Sequence[nn.Module],
        num_run: int | None = None,
        others: Sequence[tuple[int, ...]],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.width, self.pooled_width, self.length = width, pooled_width, length
        self.dtype = dtype
        self.num_run = num_run
        self.blocks = nn.ModuleList(blocks)
        self.others = nn.ParameterList(torch.empty(shape, device="meta") for shape in others)
        self.to(dtype).requires_grad_(False)

    def blocks_to_wrap(self) -> list[nn.Module]:
        return list(self.blocks)

    def forward(self, captions: Sequence[str]) -> Conditioning:
        batch = len(captions)
        x = torch.empty(batch, self.length, self.width, device="meta", dtype=self.dtype)
        for block in self.blocks[: self.num_run]:
            x = block(x)
        mask = torch.ones(batch, self.length, dtype=torch.bool, device="meta")
        return Conditioning(tokens=x, mask=mask, pooled=torch.empty(batch, self.pooled_width, device="meta"))


class PlannedJoined(nn.Module):
    """Several, one after the other; what they give is stated by ``width``, ``pooled_width`` and ``length``."""

    def __init__(self, encoders: Sequence[nn.Module], *, width: int, pooled_width: int, length: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.width, self.pooled_width, self.length = width, pooled_width, length

    def blocks_to_wrap(self) -> list[nn.Module]:
        return [
            block
            for encoder in self.encoders
            if isinstance(encoder, HasBlocks)
            for block in encoder.blocks_to_wrap()
        ]

    def forward(self, captions: Sequence[str]) -> list[Conditioning]:
        return [encoder(captions) for encoder in self.encoders]


class ClipBlock(nn.Module):
    """CLIP's block (2103.00020, section 2.4)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width=width, num_heads=heads, qk_norm=False)
        self.feed_forward = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class T5Block(nn.Module):
    """A block of T5's encoder, version 1.1 (1910.10683; 2002.05202): no biases, gated feed-forward, RMS norms."""

    def __init__(self, width: int, *, heads: int, head_width: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width, bias=False)
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        x = x + self.out(MatmulAttention()(q, k, v).transpose(1, 2).flatten(2))  # (B, L, D)
        value, gate = self.up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(value * gate)


def planned_clip(
    *,
    width: int,
    heads: int,
    layers: int,
    projection: int,
    vocab_size: int,
    context_length: int,
    pooled_width: int,
    length: int,
    num_run: int | None,
    dtype: torch.dtype,
) -> PlannedText:
    """CLIP's text side."""
    return PlannedText(
        width=width,
        pooled_width=pooled_width,
        length=length,
        blocks=[ClipBlock(width, heads) for _ in range(layers)],
        num_run=num_run,
        others=[(vocab_size, width), (context_length, width), (width, projection), (2, width)],
        dtype=dtype,
    )


def planned_t5(
    *,
    d_model: int,
    d_kv: int,
    d_ff: int,
    num_layers: int,
    num_heads: int,
    vocab_size: int,
    pooled_width: int,
    length: int,
    dtype: torch.dtype,
) -> PlannedText:
    """The encoder of a T5 of version 1.1, the arguments called as in its config.json."""
    return PlannedText(
        width=d_model,
        pooled_width=pooled_width,
        length=length,
        blocks=[T5Block(d_model, heads=num_heads, head_width=d_kv, hidden=d_ff) for _ in range(num_layers)],
        others=[(vocab_size, d_model), (32, num_heads), (d_model,)],  # 32 distances in the bias of attention
        dtype=dtype,
    )
