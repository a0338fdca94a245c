"""MMDiT: text and picture in one attention, each with weights of its own (Stable Diffusion 3, 2403.03206, figure 2).

Every block joins the two streams in one attention; after the last block the text's stream is not needed any more and
ends. The pooled caption and the time steer both through adaLN-Zero. Stable Diffusion 3.5 adds RMS norms of queries and
keys, and in the medium model's first blocks a second attention among the picture's tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.interfaces import Conditioning
from ldm.nn.attention import SDPA, AttentionKernel, SelfAttention, check_heads, qk_norms
from ldm.nn.joint import Heads, Stream, attend, attend_jointly, joint_mask
from ldm.nn.late_inputs import LateInputs
from ldm.nn.layers import TimeEmbedding, add_gated, modulate
from ldm.nn.positions import sincos_grid


class LastText(nn.Module):
    """The text's side of the last block: it is looked at, but nobody asks what it finds."""

    def __init__(self, *, width: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = check_heads(width, num_heads)
        self.modulation = nn.Linear(width, 2 * width)
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        # With queries, which the published weights have too. Nothing is learned there, and no gradient is waited for.
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = qk_norms(width // num_heads, enabled=qk_norm)
        self.q_norm.requires_grad_(False)

    def keys_and_values(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, L, width), c (B, width) -> k and v (B, L, heads, d)."""
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=-1)
        x = modulate(self.norm1(x), shift, scale)
        width = x.shape[-1]
        kv = F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:])  # (B, L, 2 * width)
        k, v = kv.unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        return self.k_norm(k), v


class MMDiTBlock(nn.Module):
    """One joint attention and two feed-forwards: picture (B, N, width) and text (B, L, width) -> same.

    Args:
        width: Of both streams.
        num_heads: Divides ``width``.
        qk_norm: RMS-normalise queries and keys per head.
        dual: A second self-attention of the picture's tokens.
        last: The text's stream ends here.
        kernel: The attention kernel.
    """

    def __init__(
        self, *, width: int, num_heads: int, qk_norm: bool, dual: bool, last: bool, kernel: AttentionKernel
    ) -> None:
        super().__init__()
        self.kernel = kernel
        text_side = LastText if last else Stream
        self.image = Stream(
            width=width, num_heads=num_heads, qk_norm=qk_norm, num_modulations=9 if dual else 6
        )
        self.text = text_side(width=width, num_heads=num_heads, qk_norm=qk_norm)
        self.dual = (
            SelfAttention(width=width, num_heads=num_heads, qk_norm=qk_norm, kernel=kernel) if dual else None
        )

    def forward(self, x: Tensor, text: Tensor, c: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, N, width), text (B, L, width), c (B, width) activated, mask (B, L + N) -> x, text."""
        shift1, scale1, gate1, shift2, scale2, gate2, *more = self.image.modulations(c)  # (B, 1, width) each
        normed = self.image.norm1(x)
        heads = self.image.heads(modulate(normed, shift1, scale1))
        if isinstance(self.text, Stream):
            t_shift1, t_scale1, t_gate1, t_shift2, t_scale2, t_gate2 = self.text.modulations(c)
            text_heads = self.text.heads(modulate(self.text.norm1(text), t_shift1, t_scale1))
            found_by_text, found = attend_jointly(self.kernel, text_heads, heads, mask=mask)
            text = add_gated(text, t_gate1, self.text.out(found_by_text))
            text = self.text.transform(text, t_shift2, t_scale2, t_gate2)
        else:
            found = attend(self.kernel, _after(*self.text.keys_and_values(text, c), heads), mask=mask)
        x = add_gated(x, gate1, self.image.out(found))
        if self.dual is not None:
            shift3, scale3, gate3 = more
            x = add_gated(x, gate3, self.dual(modulate(normed, shift3, scale3)))
        return self.image.transform(x, shift2, scale2, gate2), text


def _after(k: Tensor, v: Tensor, image: Heads) -> Heads:
    """The picture's queries, and its keys and values behind those (B, L, heads, d) of the text."""
    return image[0], torch.cat([k, image[1]], dim=1), torch.cat([v, image[2]], dim=1)


class MMDiT(nn.Module):
    """Latents (B, C, H, W), t (B,) in [0, 1] and a Conditioning -> (B, C, H, W).

    H and W are any that ``patch_size`` divides, up to ``max_size`` patches a side.

    Args:
        in_channels: C, latent channels in and out.
        patch_size: Side of the square patch that becomes one token.
        width: Token width.
        depth: Number of blocks.
        num_heads: Divides ``width``.
        context_width: D of the text encoder.
        pooled_width: P of the text encoder.
        max_size: Patches a side that have a position; smaller pictures take the middle of this square.
        base_size: The positions 0 ... max_size - 1 count from 0 to almost this number: the patches a side of the
            pictures that training began with (2403.03206, section 5.3.2).
        qk_norm: RMS-normalise queries and keys, as Stable Diffusion 3.5 does.
        dual_attention: Numbers of the blocks with a second attention among the picture's tokens, counted from 0.
        context_mask: Attend to real tokens only. The published networks attend to the padding too.
        guidance: None for a network that is not told of guidance; else the scale it is told where the conditioning
            names none.
        average: Tell it ``Conditioning.span``: its answers may be averages of the velocity over a time.
        attention: The attention kernel; ``SDPA`` when None.

    Raises:
        ValueError: ``dual_attention`` names a block that is not there.
    """

    positions: Tensor  # (max_size, max_size, width)

    def __init__(
        self,
        *,
        in_channels: int,
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        context_width: int,
        pooled_width: int,
        max_size: int,
        base_size: int,
        qk_norm: bool = False,
        dual_attention: Sequence[int] = (),
        context_mask: bool = True,
        guidance: float | None = None,
        average: bool = False,
        attention: AttentionKernel | None = None,
    ) -> None:
        super().__init__()
        if any(not 0 <= i < depth for i in dual_attention):
            raise ValueError(f"dual_attention={list(dual_attention)} must name blocks from 0 to {depth - 1}")
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.base_size = base_size
        self.context_mask = context_mask
        self.patch_in = nn.Linear(in_channels * patch_size**2, width)
        self.time_embedding = TimeEmbedding(width)
        self.pooled_embedding = nn.Sequential(
            nn.Linear(pooled_width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.late = LateInputs(width, guidance=guidance, average=average)
        self.text_in = nn.Linear(context_width, width)
        self.blocks = nn.ModuleList(
            MMDiTBlock(
                width=width,
                num_heads=num_heads,
                qk_norm=qk_norm,
                dual=i in dual_attention,
                last=i == depth - 1,
                kernel=attention or SDPA(),
            )
            for i in range(depth)
        )
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, in_channels * patch_size**2)
        along = torch.arange(max_size) * (base_size / max_size)
        # Part of the state, since published files carry the table they were trained with.
        self.register_buffer("positions", sincos_grid(along, along, width).unflatten(0, (max_size, max_size)))
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
        return list(self.blocks)

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        p = self.patch_size
        height, width = x.shape[-2:]
        if height % p or width % p:
            raise ValueError(f"latent {height}x{width} is not divisible by patch_size={p}")
        h, w = height // p, width // p
        x = self.patch_in(rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p))  # (B, N, width)
        x = x + self.crop_positions(h, w).to(x.dtype)
        told = self.late(self.time_embedding(t), t, cond)
        c = F.silu(told + self.pooled_embedding(cond.pooled))  # (B, width)
        text = self.text_in(cond.tokens)  # (B, L, width)
        mask = joint_mask(cond.mask, h * w) if self.context_mask else None  # (B, L + N)
        for block in self.blocks:
            x, text = block(x, text, c, mask)
        shift, scale = self.modulation_out(c)[:, None].chunk(2, dim=-1)
        x = self.patch_out(modulate(self.norm_out(x), shift, scale))  # (B, N, p*p*C)
        return rearrange(x, "b (h w) (p q c) -> b c (h p) (w q)", h=h, w=w, p=p, q=p)

    def crop_positions(self, height: int, width: int) -> Tensor:
        """The middle of the table: (height * width, width of tokens).

        Raises:
            ValueError: The picture has more patches a side than the table.
        """
        side = len(self.positions)
        if height > side or width > side:
            raise ValueError(
                f"{height}x{width} patches are more than the {side} a side that have positions: max_size"
            )
        top, left = (side - height) // 2, (side - width) // 2
        return self.positions[top : top + height, left : left + width].flatten(0, 1)
