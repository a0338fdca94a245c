"""DiT: a transformer over latent patches (2212.09748), with text by cross-attention (2310.00426, section 2.3).

The picture's tokens attend to each other, then to the caption's tokens. The time and the pooled caption steer every
block through adaLN-Zero: scale, shift and gate from one vector, gates starting at zero, so that the network starts as
the identity over its blocks.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from ldm.interfaces import Conditioning
from ldm.nn.attention import AttentionKernel, CrossAttention, SelfAttention
from ldm.nn.layers import Activation, FeedForward, TimeEmbedding, grid_positions, modulate


class DiTBlock(nn.Module):
    """adaLN-Zero block: self-attention, cross-attention to the caption, feed-forward; (B, N, width) -> same."""

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        context_width: int,
        mlp_ratio: float,
        qk_norm: bool,
        kernel: AttentionKernel | None,
        activation: Activation | None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = SelfAttention(width=width, num_heads=num_heads, qk_norm=qk_norm, kernel=kernel)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.cross_attention = CrossAttention(
            width=width, context_width=context_width, num_heads=num_heads, qk_norm=qk_norm, kernel=kernel
        )
        self.norm3 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.feed_forward = FeedForward(width, ratio=mlp_ratio, activation=activation)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """x (B, N, width), c (B, width), context (B, L, D), mask (B, L) -> (B, N, width)."""
        shift1, scale1, gate1, shift3, scale3, gate3 = self.modulation(c)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1))
        x = x + self.cross_attention(self.norm2(x), context, mask)
        return x + gate3 * self.feed_forward(modulate(self.norm3(x), shift3, scale3))


class DiT(nn.Module):
    """Latents (B, C, H, W), t (B,) in [0, 1] and a Conditioning -> (B, C, H, W), for any H x W that patches divide.

    Args:
        in_channels: C, latent channels in and out.
        patch_size: Side of the square patch that becomes one token; cost falls with its square.
        width: Token width.
        depth: Number of blocks.
        num_heads: Divides ``width``.
        context_width: D of the text encoder.
        pooled_width: P of the text encoder.
        mlp_ratio: Hidden width of the feed-forward, in widths.
        qk_norm: RMS-normalise queries and keys.
        attention: The attention kernel; ``SDPA`` when None.
        activation: Of the feed-forward; ``GELU`` when None.
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
        pooled_width: int,
        mlp_ratio: float = 4.0,
        qk_norm: bool = True,
        attention: AttentionKernel | None = None,
        activation: Activation | None = None,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.width = width
        self.patch_in = nn.Linear(in_channels * patch_size**2, width)
        self.time_embedding = TimeEmbedding(width)
        self.pooled_embedding = nn.Linear(pooled_width, width)
        self.context_norm = nn.LayerNorm(context_width, eps=1e-6)
        self.blocks = nn.ModuleList(
            DiTBlock(
                width=width,
                num_heads=num_heads,
                context_width=context_width,
                mlp_ratio=mlp_ratio,
                qk_norm=qk_norm,
                kernel=attention,
                activation=activation,
            )
            for _ in range(depth)
        )
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation_out = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.patch_out = nn.Linear(width, in_channels * patch_size**2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices; zero for what adaLN-Zero wants silent at the start (2212.09748, section 3.2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        silent = ["patch_out", "modulation_out.1"]
        for i in range(len(self.blocks)):
            silent += [f"blocks.{i}.modulation.1", f"blocks.{i}.cross_attention.out"]
        for name in silent:
            nn.init.zeros_(self.get_submodule(name).get_parameter("weight"))

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        p = self.patch_size
        height, width = x.shape[-2:]
        if height % p or width % p:
            raise ValueError(f"latent {height}x{width} is not divisible by patch_size={p}")
        h, w = height // p, width // p
        x = self.patch_in(rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p))  # (B, N, width)
        x = x + grid_positions(h, w, self.width, device=x.device).to(x.dtype)
        c = self.time_embedding(t) + self.pooled_embedding(cond.pooled)  # (B, width)
        context = self.context_norm(cond.tokens)  # (B, L, D)
        for block in self.blocks:
            x = block(x, c, context, cond.mask)
        shift, scale = self.modulation_out(c)[:, None].chunk(2, dim=-1)
        x = self.patch_out(modulate(self.norm_out(x), shift, scale))  # (B, N, C*p*p)
        return rearrange(x, "b (h w) (c p q) -> b c (h p) (w q)", h=h, w=w, p=p, q=p)
