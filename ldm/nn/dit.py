"""DiT: a transformer over latent patches (2212.09748), told the class, the caption, both or nothing.

One vector steers every block through adaLN-Zero (2212.09748, section 3.2): scale, shift and gate, the gates starting at
zero, so that the network starts as the identity over its blocks. It is the sum of the time's embedding, the class
label's and the pooled caption's. The caption's tokens are heard by cross-attention (2310.00426, section 2.3) or stand
in context: in line with the picture's tokens, all attending to all.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.interfaces import Conditioning
from ldm.nn.attention import AttentionKernel, CrossAttention, SelfAttention
from ldm.nn.late_inputs import LateInputs
from ldm.nn.layers import Activation, FeedForward, RMSNorm, TimeEmbedding, add_gated, modulate
from ldm.nn.positions import CentredSinCos, Positions


class DiTBlock(nn.Module):
    """adaLN-Zero block: self-attention, cross-attention to the caption, feed-forward; (B, N, width) -> same.

    Args:
        context_width: D of the caption's tokens; None leaves the cross-attention out.
        norm3_eps: Of the layer norm before the feed-forward.
        Others: See ``DiT``.
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        context_width: int | None,
        mlp_ratio: float,
        qk_norm: bool,
        rms_norm: bool,
        norm3_eps: float,
        kernel: AttentionKernel | None,
        activation: Activation | None,
        gated: bool,
    ) -> None:
        super().__init__()
        self.norm1 = norm(width, rms=rms_norm)
        self.attention = SelfAttention(width=width, num_heads=num_heads, qk_norm=qk_norm, kernel=kernel)
        if context_width is not None:
            self.norm2 = norm(width, rms=rms_norm, affine=True)
            self.cross_attention = CrossAttention(
                width=width, context_width=context_width, num_heads=num_heads, qk_norm=qk_norm, kernel=kernel
            )
        self.norm3 = norm(width, rms=rms_norm, eps=norm3_eps)
        self.feed_forward = FeedForward(width, ratio=mlp_ratio, activation=activation, gated=gated)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.hears_captions = context_width is not None

    def forward(
        self, x: Tensor, c: Tensor, context: Tensor | None, mask: Tensor | None, rotation: Tensor | None
    ) -> Tensor:
        """x (B, N, width), c (B, width), rotation (N, d/2, 2) -> (B, N, width).

        With cross-attention, context is (B, L, D) and mask (B, L); without, context is None and mask (B, N) or None.
        """
        shift1, scale1, gate1, shift3, scale3, gate3 = self.modulation(c)[:, None].chunk(6, dim=-1)
        own_mask = None if self.hears_captions else mask
        attended = self.attention(modulate(self.norm1(x), shift1, scale1), own_mask, rotation)
        x = add_gated(x, gate1, attended)
        if self.hears_captions:
            x = x + self.cross_attention(self.norm2(x), context, mask)
        return add_gated(x, gate3, self.feed_forward(modulate(self.norm3(x), shift3, scale3)))


class DiT(nn.Module):
    """Latents (B, C, H, W), t (B,) in [0, 1] and a Conditioning -> (B, C, H, W), for any H x W that patches divide.

    Args:
        in_channels: C, latent channels in and out.
        patch_size: Side of the square patch that becomes one token; cost falls with its square.
        width: Token width.
        depth: Number of blocks.
        num_heads: Divides ``width``.
        num_classes: Class labels that it is told (``Conditioning.labels``), and one more for "no class"; None for none.
        context_width: D of the text encoder, whose tokens it hears; None for no captions.
        pooled_width: P of the text encoder, whose pooled vector steers the blocks; None or 0 for none.
        in_context: The caption's tokens stand in line with the picture's, instead of being heard by cross-attention:
            fewer parameters and larger attention (2212.09748, section 3.2; 2209.12152).
        mlp_ratio: Hidden width of the feed-forward, in widths.
        qk_norm: RMS-normalise queries and keys.
        rms_norm: RMS norms (1910.07467) in place of layer norms.
        gated: A gated feed-forward: SwiGLU with the activation ``SiLU`` (2002.05202).
        out_channels: Of the last layer; None for C. Networks that learn the variance too have 2C: the mean's channels,
            then the variance's (2102.09672).
        drop_variance: Leave out what the last layer says beyond the first C channels: for a training that does not
            learn the variance, on weights of one that did. False gives (B, out_channels, H, W).
        frequency_shift: Of the time's sinusoids. The published network has 0; diffusers' class has 1.
        norm3_eps: Of the layer norm before the feed-forward. The published network has 1e-6; diffusers' class, 1e-5.
        guidance: None for a network that is not told of guidance; else the scale it is told where the conditioning
            names none.
        average: Tell it ``Conditioning.span``: its answers may be averages of the velocity over a time.
        positions: How the network is told where patches stand; ``CentredSinCos`` when None.
        attention: The attention kernel; ``SDPA`` when None.
        activation: Of the feed-forward; ``GELU`` when None.

    Raises:
        ValueError: Widths and heads that do not fit, ``in_context`` without captions, or too few ``out_channels``.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        num_classes: int | None = None,
        context_width: int | None = None,
        pooled_width: int | None = None,
        in_context: bool = False,
        mlp_ratio: float = 4.0,
        qk_norm: bool = True,
        rms_norm: bool = False,
        gated: bool = False,
        out_channels: int | None = None,
        drop_variance: bool = True,
        frequency_shift: float = 0.0,
        norm3_eps: float = 1e-6,
        guidance: float | None = None,
        average: bool = False,
        positions: Positions | None = None,
        attention: AttentionKernel | None = None,
        activation: Activation | None = None,
    ) -> None:
        super().__init__()
        if in_context and context_width is None:
            raise ValueError("in_context=true needs captions to put there; give context_width")
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        if self.out_channels < in_channels:
            raise ValueError(f"out_channels={out_channels} must be at least in_channels={in_channels}")
        self.drop_variance = drop_variance
        self.patch_size = patch_size
        self.width = width
        self.head_width = width // num_heads
        self.num_classes = num_classes
        self.in_context = in_context
        self.positions = positions or CentredSinCos()
        self.patch_in = nn.Linear(in_channels * patch_size**2, width)
        self.time_embedding = TimeEmbedding(width, shift=frequency_shift)
        self.label_embedding = None if num_classes is None else nn.Embedding(num_classes + 1, width)
        self.pooled_embedding = nn.Linear(pooled_width, width) if pooled_width else None
        self.late = LateInputs(width, guidance=guidance, average=average)
        self.context_norm = None if context_width is None else norm(context_width, rms=rms_norm, affine=True)
        self.context_in = nn.Linear(context_width, width) if in_context and context_width else None
        self.blocks = nn.ModuleList(
            DiTBlock(
                width=width,
                num_heads=num_heads,
                context_width=None if in_context else context_width,
                mlp_ratio=mlp_ratio,
                qk_norm=qk_norm,
                rms_norm=rms_norm,
                norm3_eps=norm3_eps,
                kernel=attention,
                activation=activation,
                gated=gated,
            )
            for _ in range(depth)
        )
        self.norm_out = norm(width, rms=rms_norm)
        self.modulation_out = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.patch_out = nn.Linear(width, self.out_channels * patch_size**2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices; zero for what adaLN-Zero wants silent at the start (2212.09748, section 3.2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        if self.label_embedding is not None:
            nn.init.normal_(self.label_embedding.weight, std=0.02)
        silent = ["patch_out", "modulation_out.1"]
        for i, block in enumerate(self.blocks):
            silent.append(f"blocks.{i}.modulation.1")
            if block.hears_captions:
                silent.append(f"blocks.{i}.cross_attention.out")
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
        c = self.steering(t, cond)  # (B, width)
        context, mask = None, None
        if self.context_norm is not None:
            context, mask = self.context_norm(cond.tokens), cond.mask  # (B, L, D), (B, L)
        if self.context_in is not None:
            words = self.context_in(context).to(x.dtype)  # (B, L, width)
            context, mask = None, torch.cat([cond.mask.new_ones(x.shape[:2]), cond.mask], dim=1)  # (B, N + L)
            x = torch.cat([x, words], dim=1)  # (B, N + L, width)
            rotation = None if rotation is None else unturned_behind(rotation, words.shape[1])
        for block in self.blocks:
            x = block(x, c, context, mask, rotation)
        x = x[:, : h * w]  # (B, N, width)
        shift, scale = self.modulation_out(c)[:, None].chunk(2, dim=-1)
        x = self.patch_out(modulate(self.norm_out(x), shift, scale))  # (B, N, out_channels*p*p)
        x = rearrange(x, "b (h w) (c p q) -> b c (h p) (w q)", h=h, w=w, p=p, q=p)
        return x[:, : self.in_channels] if self.drop_variance else x

    def steering(self, t: Tensor, cond: Conditioning) -> Tensor:
        """What all blocks are steered by: (B, width)."""
        c = self.late(self.time_embedding(t), t, cond)
        if self.label_embedding is not None:
            if cond.labels is None:
                raise ValueError(
                    f"this network wants one of {self.num_classes} class labels, and the conditioning has none: "
                    f"use text_encoder=labels"
                )
            c = c + self.label_embedding(cond.labels)
        return c if self.pooled_embedding is None else c + self.pooled_embedding(cond.pooled)


def norm(width: int, *, rms: bool, affine: bool = False, eps: float = 1e-6) -> nn.Module:
    """A layer norm or an RMS norm."""
    return RMSNorm(width, affine=affine) if rms else nn.LayerNorm(width, elementwise_affine=affine, eps=eps)


def unturned_behind(rotation: Tensor, num: int) -> Tensor:
    """rotation (N, d/2, 2) -> (N + num, d/2, 2): further tokens without a place, not turned."""
    ones = rotation.new_ones(num, rotation.shape[1], 1)
    return torch.cat([rotation, torch.cat([ones, torch.zeros_like(ones)], dim=-1)])
