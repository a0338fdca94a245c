"""PixArt-alpha: a transformer over latent patches with captions by cross-attention (2310.00426).

It differs from ``ldm/nn/dit.py`` in adaLN-single (section 2.3): one layer makes scales, shifts and gates from the time
for all blocks alike, and each block only adds a small table of its own. The caption's tokens go through an MLP once;
the cross-attention reads the picture's tokens without a norm before it, as released.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.interfaces import Conditioning
from ldm.nn.attention import AttentionKernel, CrossAttention, SelfAttention
from ldm.nn.late_inputs import LateInputs
from ldm.nn.layers import Activation, FeedForward, TimeEmbedding, add_gated, modulate, sinusoidal
from ldm.nn.positions import Positions, SinCos


class PixArtBlock(nn.Module):
    """Self-attention, cross-attention to the caption, feed-forward; (B, N, width) -> same."""

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        kernel: AttentionKernel | None,
        activation: Activation | None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = SelfAttention(width=width, num_heads=num_heads, qk_norm=False, kernel=kernel)
        self.cross_attention = CrossAttention(
            width=width, context_width=width, num_heads=num_heads, qk_norm=False, kernel=kernel
        )
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.feed_forward = FeedForward(width, ratio=mlp_ratio, activation=activation)
        self.modulation = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(self, x: Tensor, c: Tensor, context: Tensor, mask: Tensor, rotation: Tensor | None) -> Tensor:
        """x (B, N, width), c (B, 6, width), context (B, L, width), mask (B, L) -> (B, N, width)."""
        steering = (self.modulation.to(c.dtype) + c)[:, :, None]  # (B, 6, 1, width)
        shift1, scale1, gate1, shift2, scale2, gate2 = steering.unbind(1)
        attended = self.attention(modulate(self.norm1(x), shift1, scale1), None, rotation)
        x = add_gated(x, gate1, attended)
        x = x + self.cross_attention(x, context, mask)
        return add_gated(x, gate2, self.feed_forward(modulate(self.norm2(x), shift2, scale2)))


class SizeEmbedding(nn.Module):
    """sizes (B, 6) of ``Conditioning`` -> (B, width): original height, original width and target ratio, a third each.

    Raises:
        ValueError: ``width`` is not divisible by 3.
    """

    def __init__(self, width: int, *, num_features: int = 256) -> None:
        super().__init__()
        if width % 3:
            raise ValueError(f"micro_conditioning needs a width divisible by 3, not {width}")
        third = width // 3
        self.num_features = num_features
        self.side = nn.Sequential(nn.Linear(num_features, third), nn.SiLU(), nn.Linear(third, third))
        self.ratio = nn.Sequential(nn.Linear(num_features, third), nn.SiLU(), nn.Linear(third, third))

    def forward(self, sizes: Tensor) -> Tensor:
        height, width, _, _, target_height, target_width = sizes.float().unbind(-1)
        sides = self.side(
            sinusoidal(torch.stack([height, width], dim=-1), self.num_features)
        )  # (B, 2, width / 3)
        ratio = self.ratio(sinusoidal(target_height / target_width, self.num_features))  # (B, width / 3)
        return torch.cat([sides.flatten(1), ratio], dim=-1)


class PixArt(nn.Module):
    """Latents (B, C, H, W), t (B,) in [0, 1] and a Conditioning -> (B, C, H, W), for any H x W that patches divide.

    Args:
        in_channels: C, latent channels in and out.
        patch_size: Side of the square patch that becomes one token.
        width: Token width.
        depth: Number of blocks.
        num_heads: Divides ``width``.
        context_width: D of the text encoder.
        mlp_ratio: Hidden width of the feed-forward, in widths.
        micro_conditioning: Tell the network the size and the shape of the picture, from ``Conditioning.sizes``: its
            original height and width, and the ratio of the height to the width that it was brought to. Off at 256 and
            512 pixels and on at 1024, as published.
        out_channels: Of the last layer; None for C. The published networks have 2C, the variance after the mean.
        drop_variance: Leave out what the last layer says beyond the first C channels: for a training that does not
            learn the variance. False gives (B, out_channels, H, W).
        guidance: None for a network that is not told of guidance; else the scale it is told where the conditioning
            names none.
        average: Tell it ``Conditioning.span``: its answers may be averages of the velocity over a time.
        positions: How the network is told where patches stand; ``SinCos`` of 16 patches a side when None.
        attention: The attention kernel; ``SDPA`` when None.
        activation: Of the feed-forward; ``GELU`` when None.

    Raises:
        ValueError: Widths and heads that do not fit, or too few ``out_channels``.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        context_width: int,
        mlp_ratio: float = 4.0,
        micro_conditioning: bool = False,
        out_channels: int | None = None,
        drop_variance: bool = True,
        guidance: float | None = None,
        average: bool = False,
        positions: Positions | None = None,
        attention: AttentionKernel | None = None,
        activation: Activation | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        if self.out_channels < in_channels:
            raise ValueError(f"out_channels={out_channels} must be at least in_channels={in_channels}")
        self.drop_variance = drop_variance
        self.patch_size = patch_size
        self.width = width
        self.head_width = width // num_heads
        self.positions = positions or SinCos(base_size=16)
        self.patch_in = nn.Linear(in_channels * patch_size**2, width)
        self.time_embedding = TimeEmbedding(width)
        self.size_embedding = SizeEmbedding(width) if micro_conditioning else None
        self.late = LateInputs(width, guidance=guidance, average=average)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.context_in = nn.Sequential(
            nn.Linear(context_width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.blocks = nn.ModuleList(
            PixArtBlock(
                width=width, num_heads=num_heads, mlp_ratio=mlp_ratio, kernel=attention, activation=activation
            )
            for _ in range(depth)
        )
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation_out = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.patch_out = nn.Linear(width, self.out_channels * patch_size**2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As released: Xavier-uniform matrices, small ones where the conditions come in, zero where blocks speak."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for part in (self.time_embedding, self.modulation, self.context_in):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
        silent = ["patch_out", *(f"blocks.{i}.cross_attention.out" for i in range(len(self.blocks)))]
        for name in silent:
            nn.init.zeros_(self.get_submodule(name).get_parameter("weight"))
        self.late.silence()

    def blocks_to_wrap(self) -> list[nn.Module]:
        """What is compiled, checkpointed and sharded one by one: see ``ldm/nn/blocks.py``."""
        return list(self.blocks)

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        p = self.patch_size
        height, width = x.shape[-2:]
        if height % p or width % p:
            raise ValueError(f"latent {height}x{width} is not divisible by patch_size={p}")
        h, w = height // p, width // p
        x = self.patch_in(rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p))  # (B, N, width)
        features = self.positions.features(h, w, self.width, device=x.device)
        if features is not None:
            x = x + features.to(x.dtype)
        rotation = self.positions.rotations(h, w, self.head_width, device=x.device)  # (N, d/2, 2)
        time = self.steering(t, cond)  # (B, width)
        c = self.modulation(time).unflatten(-1, (6, -1))  # (B, 6, width)
        context = self.context_in(cond.tokens)  # (B, L, width)
        for block in self.blocks:
            x = block(x, c, context, cond.mask, rotation)
        shift, scale = (self.modulation_out.to(time.dtype) + time[:, None])[:, :, None].unbind(
            1
        )  # (B, 1, width)
        x = self.patch_out(modulate(self.norm_out(x), shift, scale))  # (B, N, out_channels*p*p)
        x = rearrange(x, "b (h w) (c p q) -> b c (h p) (w q)", h=h, w=w, p=p, q=p)
        return x[:, : self.in_channels] if self.drop_variance else x

    def steering(self, t: Tensor, cond: Conditioning) -> Tensor:
        """What all blocks are steered by: (B, width)."""
        time = self.late(self.time_embedding(t), t, cond)
        if self.size_embedding is None:
            return time
        if cond.sizes is None:
            raise ValueError(
                "micro_conditioning=true needs the sizes of the pictures, and the conditioning has none: "
                "use network.micro_conditioning=false"
            )
        return time + self.size_embedding(cond.sizes)
