"""Flux: joint attention in double-stream blocks, then text and picture as one stream (Black Forest Labs' FLUX.1).

There is no paper; layout and sizes are those of the released weights. 2 x 2 latents make one token. Positions are
rotations of queries and keys on three axes, (0, row, column) for the picture and (0, 0, 0) for the text. In the single
blocks attention and feed-forward stand side by side (2302.05442, section 2). The guidance scale of the distilled "dev"
model is an input like the time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.interfaces import Conditioning
from ldm.nn.attention import SDPA, AttentionKernel, check_heads, qk_norms
from ldm.nn.gelu import gelu_tanh
from ldm.nn.joint import Stream, attend, attend_jointly, joint_mask
from ldm.nn.late_inputs import LateInputs
from ldm.nn.layers import TimeEmbedding, add_gated, modulate
from ldm.nn.rope import image_positions, rotations


class DoubleBlock(nn.Module):
    """One joint attention and two feed-forwards: picture (B, N, width) and text (B, L, width) -> same."""

    def __init__(self, *, width: int, num_heads: int, kernel: AttentionKernel) -> None:
        super().__init__()
        self.kernel = kernel
        self.image = Stream(width=width, num_heads=num_heads, qk_norm=True)
        self.text = Stream(width=width, num_heads=num_heads, qk_norm=True)

    def forward(
        self, x: Tensor, text: Tensor, c: Tensor, rotation: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x (B, N, width), text (B, L, width), c (B, width) activated, rotation (L + N, d/2, 2), mask (B, L + N)."""
        shift1, scale1, gate1, *rest = self.image.modulations(c)  # (B, 1, width) each
        t_shift1, t_scale1, t_gate1, *t_rest = self.text.modulations(c)
        found_by_text, found = attend_jointly(
            self.kernel,
            self.text.heads(modulate(self.text.norm1(text), t_shift1, t_scale1)),
            self.image.heads(modulate(self.image.norm1(x), shift1, scale1)),
            mask=mask,
            rotation=rotation,
        )
        x = self.image.transform(add_gated(x, gate1, self.image.out(found)), *rest)
        text = self.text.transform(add_gated(text, t_gate1, self.text.out(found_by_text)), *t_rest)
        return x, text


class SingleBlock(nn.Module):
    """Attention beside feed-forward, with one projection into both and one out of both.

    The two projections are one weight each, as in the published files, and are multiplied part by part: joining and
    cutting tokens would cost more than a longer row of products saves.
    """

    def __init__(self, *, width: int, num_heads: int, kernel: AttentionKernel) -> None:
        super().__init__()
        self.kernel = kernel
        self.num_heads = check_heads(width, num_heads)
        self.width = width
        self.modulation = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.into = nn.Linear(width, 7 * width)  # q; k and v; 4 * width hidden channels
        self.q_norm, self.k_norm = qk_norms(width // num_heads, enabled=True)
        self.out = nn.Linear(5 * width, width)  # of what attention found; of the hidden channels

    def forward(
        self, x: Tensor, c: Tensor, rotation: Tensor, mask: Tensor | None, num_silent: int = 0
    ) -> Tensor:
        """x (B, M, width), c (B, width) activated, rotation (M, d/2, 2), mask (B, M) -> (B, M - num_silent, width).

        The first ``num_silent`` tokens are only looked at.
        """
        shift, scale, gate = self.modulation(c)[:, None].chunk(3, dim=-1)
        normed = modulate(self.norm(x), shift, scale)
        asking = normed[:, num_silent:]  # (B, N, width)
        sizes = [self.width, 2 * self.width, 4 * self.width]
        (to_q, q_bias), (to_kv, kv_bias), (to_hidden, hidden_bias) = zip(
            self.into.weight.split(sizes), self.into.bias.split(sizes), strict=True
        )
        q = F.linear(asking, to_q, q_bias).unflatten(-1, (self.num_heads, -1))  # (B, N, heads, d)
        kv = F.linear(normed, to_kv, kv_bias).unflatten(-1, (2, self.num_heads, -1))
        k, v = kv.unbind(2)  # (B, M, heads, d) each
        found = attend(self.kernel, (self.q_norm(q), self.k_norm(k), v), mask=mask, rotation=rotation)
        hidden = gelu_tanh(F.linear(asking, to_hidden, hidden_bias))  # (B, N, 4 * width)
        from_found, from_hidden = self.out.weight.split([self.width, 4 * self.width], dim=1)
        added = F.linear(found, from_found, self.out.bias) + F.linear(hidden, from_hidden)
        return add_gated(x[:, num_silent:], gate, added)  # (B, N, width)


class Flux(nn.Module):
    """Latents (B, C, H, W), t (B,) in [0, 1] and a Conditioning -> (B, C, H, W), for any H x W that patches divide.

    Args:
        in_channels: C, latent channels in and out.
        patch_size: Side of the square of latents that becomes one token.
        width: Token width.
        num_double_blocks: Blocks with two streams, which come first.
        num_single_blocks: Blocks with one stream.
        num_heads: Divides ``width``.
        context_width: D of the text encoder.
        pooled_width: P of the text encoder.
        rotary_widths: Channels of each head that turn with the three axes; their sum is the head's width.
        guidance: None for a network that is not told of guidance; else the scale it is told where the conditioning
            names none.
        average: Tell it ``Conditioning.span``: its answers may be averages of the velocity over a time.
        context_mask: Attend to real tokens only. The published networks attend to the padding too.
        attention: The attention kernel; ``SDPA`` when None.

    Raises:
        ValueError: ``rotary_widths`` are not three even numbers that fill a head.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        patch_size: int,
        width: int,
        num_double_blocks: int,
        num_single_blocks: int,
        num_heads: int,
        context_width: int,
        pooled_width: int,
        rotary_widths: Sequence[int],
        guidance: float | None = None,
        average: bool = False,
        context_mask: bool = True,
        attention: AttentionKernel | None = None,
    ) -> None:
        super().__init__()
        head_width = width // check_heads(width, num_heads)
        if len(rotary_widths) != 3 or sum(rotary_widths) != head_width or any(n % 2 for n in rotary_widths):
            raise ValueError(
                f"rotary_widths={list(rotary_widths)} must be three even numbers that add up to the width of a head, "
                f"{head_width}"
            )
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.rotary_widths = tuple(rotary_widths)
        self.guidance = guidance
        self.context_mask = context_mask
        self.patch_in = nn.Linear(in_channels * patch_size**2, width)
        self.time_embedding = TimeEmbedding(width)
        self.guidance_embedding = None if guidance is None else TimeEmbedding(width)
        # Guidance has its place above, where published files have it.
        self.late = LateInputs(width, guidance=None, average=average)
        self.pooled_embedding = nn.Sequential(
            nn.Linear(pooled_width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.text_in = nn.Linear(context_width, width)
        kernel = attention or SDPA()
        self.double_blocks = nn.ModuleList(
            DoubleBlock(width=width, num_heads=num_heads, kernel=kernel) for _ in range(num_double_blocks)
        )
        self.single_blocks = nn.ModuleList(
            SingleBlock(width=width, num_heads=num_heads, kernel=kernel) for _ in range(num_single_blocks)
        )
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, in_channels * patch_size**2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices; zero for what adaLN-Zero wants silent at the start (2212.09748, section 3.2)."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
                if name.endswith("modulation") or name in ("modulation_out", "patch_out"):
                    nn.init.zeros_(module.weight)
        self.late.silence()

    def blocks_to_wrap(self) -> list[nn.Module]:
        """The blocks, for checkpointing, compilation and sharding one by one."""
        return [*self.double_blocks, *self.single_blocks]

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        p = self.patch_size
        height, width = x.shape[-2:]
        if height % p or width % p:
            raise ValueError(f"latent {height}x{width} is not divisible by patch_size={p}")
        h, w = height // p, width // p
        x = self.patch_in(rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p))  # (B, N, width)
        text = self.text_in(cond.tokens)  # (B, L, width)
        c = F.silu(self.condition(t, cond))  # (B, width)
        length = text.shape[1]
        rotation = self.rotation(length, h, w, device=x.device)  # (L + N, d/2, 2)
        mask = joint_mask(cond.mask, h * w) if self.context_mask else None  # (B, L + N)
        for block in self.double_blocks:
            x, text = block(x, text, c, rotation, mask)
        x = torch.cat([text, x], dim=1)  # (B, L + N, width)
        for i, block in enumerate(self.single_blocks, start=1):
            # Nobody asks for the text behind the last block: there it is looked at, and not carried on.
            x = block(x, c, rotation, mask, length if i == len(self.single_blocks) else 0)
        shift, scale = self.modulation_out(c)[:, None].chunk(2, dim=-1)
        x = self.patch_out(modulate(self.norm_out(x[:, -h * w :]), shift, scale))  # (B, N, C*p*p)
        return rearrange(x, "b (h w) (c p q) -> b c (h p) (w q)", h=h, w=w, p=p, q=p)

    def condition(self, t: Tensor, cond: Conditioning) -> Tensor:
        """What steers all blocks: time, guidance and pooled caption, (B, width)."""
        c = self.late(self.time_embedding(t), t, cond) + self.pooled_embedding(cond.pooled)
        if self.guidance_embedding is None or self.guidance is None:
            return c
        guidance = torch.full_like(t, self.guidance) if cond.guidance is None else cond.guidance
        return c + self.guidance_embedding(guidance)

    def rotation(self, length: int, height: int, width: int, *, device: torch.device) -> Tensor:
        """Rotations of the text's and the picture's tokens, (L + N, d/2, 2)."""
        positions = F.pad(image_positions(height, width, device=device), (1, 0, length, 0))  # (L + N, 3)
        return rotations(positions, self.rotary_widths)
