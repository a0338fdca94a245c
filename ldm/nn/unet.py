"""The U-Net of latent diffusion, with cross-attention to the caption (2112.10752, section 3.3 and figure 3).

Residual blocks and stacks of transformer blocks at falling, then rising resolution; what each layer on the way down
gave is laid beside the input of its partner on the way up. One class spans the topologies of Stable Diffusion 1.x and
2.x, of SDXL (2307.01952: no attention at the highest resolution, most of it at the lowest, picture sizes and the pooled
caption beside the time) and free ones: conditioned on captions, on classes, or on nothing.

The fastest layout is ``network.to(memory_format=torch.channels_last)``: pictures then turn into tokens and back without
a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.interfaces import Conditioning
from ldm.nn.attention import AttentionKernel, CrossAttention, SelfAttention
from ldm.nn.late_inputs import LateInputs
from ldm.nn.layers import TimeEmbedding, sinusoidal

NUM_SIZES = 6  # original height and width, crop top and left, target height and width


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice; the embedding is added in between (2006.11239, appendix B)."""

    def __init__(self, in_channels: int, out_channels: int, *, embedding_width: int, num_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, in_channels, eps=1e-5)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embed = nn.Linear(embedding_width, out_channels)
        self.norm2 = nn.GroupNorm(num_groups, out_channels, eps=1e-5)
        self.conv2 = silent(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, c_in, h, w), embedding (B, E) after its SiLU -> (B, c_out, h, w)."""
        h = self.conv1(F.silu(self.norm1(x))) + self.embed(embedding)[:, :, None, None]
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class GatedFeedForward(nn.Module):
    """GEGLU (2002.05202, section 2): half of the hidden values gate the other half; (B, N, width) -> same."""

    def __init__(self, width: int, *, ratio: int = 4) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * ratio * width)
        self.down = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, dim=-1)
        return self.down(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the caption where there is one, feed-forward; (B, N, width) -> same."""

    def __init__(
        self, width: int, *, num_heads: int, context_width: int | None, kernel: AttentionKernel | None
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(
            width=width, num_heads=num_heads, qk_norm=False, bias=False, kernel=kernel
        )
        self.norm2: nn.Module | None = None
        self.cross_attention: nn.Module | None = None
        if context_width is not None:
            self.norm2 = nn.LayerNorm(width)
            self.cross_attention = CrossAttention(
                width=width,
                context_width=context_width,
                num_heads=num_heads,
                qk_norm=False,
                bias=False,
                kernel=kernel,
            )
        self.norm3 = nn.LayerNorm(width)
        self.feed_forward = GatedFeedForward(width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, N, width), context (B, L, D), mask (B, L) or None -> (B, N, width)."""
        x = x + self.attention(self.norm1(x))
        if self.norm2 is not None and self.cross_attention is not None:
            x = x + self.cross_attention(self.norm2(x), context, mask)
        return x + self.feed_forward(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over all positions of a picture, added to it: (B, c, h, w) -> same."""

    def __init__(
        self,
        channels: int,
        *,
        depth: int,
        num_heads: int,
        num_groups: int,
        context_width: int | None,
        kernel: AttentionKernel | None,
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, channels, eps=1e-6)
        self.project_in = nn.Linear(channels, channels)
        self.blocks = nn.ModuleList(
            TransformerBlock(channels, num_heads=num_heads, context_width=context_width, kernel=kernel)
            for _ in range(depth)
        )
        self.project_out = silent(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        h = self.project_in(self.norm(x).permute(0, 2, 3, 1).flatten(1, 2))  # (B, h*w, c)
        for block in self.blocks:
            h = block(h, context, mask)
        return x + self.project_out(h).unflatten(1, x.shape[-2:]).permute(0, 3, 1, 2)  # (B, c, h, w)


class Layer(nn.Module):
    """A residual block and, where the resolution has attention, a transformer: (B, c_in, h, w) -> (B, c_out, h, w)."""

    def __init__(self, residual: ResidualBlock, transformer: SpatialTransformer | None) -> None:
        super().__init__()
        self.residual = residual
        self.transformer = transformer

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        x = self.residual(x, embedding)
        return x if self.transformer is None else self.transformer(x, context, mask)


class Down(nn.Module):
    """The layers of one resolution on the way down, then a strided convolution that halves the sides."""

    def __init__(self, layers: Sequence[Layer], downsample: nn.Conv2d | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.downsample = downsample

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor, mask: Tensor | None) -> list[Tensor]:
        """x (B, c_in, h, w) -> what every part gave; the last is the way on."""
        outputs = []
        for layer in self.layers:
            x = layer(x, embedding, context, mask)
            outputs.append(x)
        return outputs if self.downsample is None else [*outputs, self.downsample(x)]


class Up(nn.Module):
    """The layers of one resolution on the way up, then nearest neighbours and a convolution at the next one's size."""

    def __init__(self, layers: Sequence[Layer], upsample: nn.Conv2d | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.upsample = upsample

    def forward(
        self, x: Tensor, skips: list[Tensor], embedding: Tensor, context: Tensor, mask: Tensor | None
    ) -> Tensor:
        """x (B, c_in, h, w); takes its partners from the end of ``skips`` -> (B, c_out, h', w')."""
        for layer in self.layers:
            x = layer(torch.cat([x, skips.pop()], dim=1), embedding, context, mask)
        if self.upsample is None:
            return x
        return self.upsample(F.interpolate(x, size=skips[-1].shape[-2:], mode="nearest"))


class UNet(nn.Module):
    """Latents (B, C, H, W), t (B,) in [0, 1] and a Conditioning -> (B, out_channels, H, W), for any H x W.

    Args:
        in_channels: C, latent channels in.
        out_channels: Latent channels out.
        channels: Channels at each resolution, highest first; each one after the first halves the sides.
        blocks_per_level: Layers per resolution on the way down; the way up has one more.
        transformer_depth: Transformer blocks in each layer of a resolution; 0 for none.
        middle_depth: Transformer blocks between the two residual blocks at the bottom; 0 for none.
        num_heads: Attention heads at each resolution; the bottom has as many as the lowest.
        context_width: D of the text encoder; None for networks that read no caption's tokens.
        context_mask: Attend to real tokens only. The published networks attend to the padding too.
        pooled_width: P of the text encoder, where its pooled vector is added to the time; 0 to leave it out.
        size_features: Sinusoids for each of the six numbers of ``Conditioning.sizes`` (2307.01952, section 2.2: 256);
            0 for networks that are told no sizes.
        num_classes: Classes of ``Conditioning.labels``; 0 for networks that are told none.
        num_groups: Groups of every group norm; divides all channels.
        conv_projections: Whether published files hold the projections around transformers as 1x1 convolutions
            (Stable Diffusion 1.x) or as linear layers (later ones). Here it is the same layer either way.
        guidance: None for a network that is not told of guidance; else the scale it is told where the conditioning
            names none.
        average: Tell it ``Conditioning.span``: its answers may be averages of the velocity over a time.
        attention: The attention kernel; ``SDPA`` when None.

    Raises:
        ValueError: Numbers that do not fit each other; they are named.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        blocks_per_level: int,
        transformer_depth: Sequence[int],
        middle_depth: int,
        num_heads: Sequence[int],
        context_width: int | None,
        context_mask: bool = True,
        pooled_width: int = 0,
        size_features: int = 0,
        num_classes: int = 0,
        num_groups: int = 32,
        conv_projections: bool = False,
        guidance: float | None = None,
        average: bool = False,
        attention: AttentionKernel | None = None,
    ) -> None:
        super().__init__()
        for name, given in {"transformer_depth": transformer_depth, "num_heads": num_heads}.items():
            if len(given) != len(channels):
                raise ValueError(
                    f"{name}={list(given)} must have as many levels as channels={list(channels)}"
                )
        for width in channels:
            if width % num_groups:
                raise ValueError(f"num_groups={num_groups} does not divide {width}, one of the channels")
        self.architecture: dict[str, Any] = {  # plain data that makes this network again, but for the kernel
            "in_channels": in_channels,
            "out_channels": out_channels,
            "channels": list(channels),
            "blocks_per_level": blocks_per_level,
            "transformer_depth": list(transformer_depth),
            "middle_depth": middle_depth,
            "num_heads": list(num_heads),
            "context_width": context_width,
            "context_mask": context_mask,
            "pooled_width": pooled_width,
            "size_features": size_features,
            "num_classes": num_classes,
            "num_groups": num_groups,
            "conv_projections": conv_projections,
            "guidance": guidance,
            "average": average,
        }
        self.context_mask = context_mask
        self.pooled_width, self.size_features, self.num_classes = pooled_width, size_features, num_classes
        embedding_width = 4 * channels[0]
        self.time_embedding = TimeEmbedding(embedding_width, num_features=channels[0])
        told = pooled_width + NUM_SIZES * size_features
        self.added_embedding = mlp(told, embedding_width) if told else None
        self.late = LateInputs(embedding_width, guidance=guidance, average=average)
        # One row more than classes: the last stands for no class.
        self.label_embedding = nn.Embedding(num_classes + 1, embedding_width) if num_classes else None

        def layer(c_in: int, c_out: int, level: int, depth: int) -> Layer:
            residual = ResidualBlock(c_in, c_out, embedding_width=embedding_width, num_groups=num_groups)
            if depth == 0:
                return Layer(residual, None)
            transformer = SpatialTransformer(
                c_out,
                depth=depth,
                num_heads=num_heads[level],
                num_groups=num_groups,
                context_width=context_width,
                kernel=attention,
            )
            return Layer(residual, transformer)

        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        width, skips = channels[0], [channels[0]]
        self.down = nn.ModuleList()
        for level, out in enumerate(channels):
            widths = [width, *[out] * (blocks_per_level - 1)]
            layers = [layer(w, out, level, transformer_depth[level]) for w in widths]
            last = level == len(channels) - 1
            self.down.append(Down(layers, None if last else nn.Conv2d(out, out, 3, stride=2, padding=1)))
            skips += [out] * (blocks_per_level + (not last))
            width = out
        bottom = len(channels) - 1
        self.middle = nn.ModuleList(
            [layer(width, width, bottom, middle_depth), layer(width, width, bottom, 0)]
        )
        self.up = nn.ModuleList()
        for level, out in reversed(list(enumerate(channels))):
            layers = []
            for _ in range(blocks_per_level + 1):
                layers.append(layer(width + skips.pop(), out, level, transformer_depth[level]))
                width = out
            self.up.append(Up(layers, None if level == 0 else nn.Conv2d(out, out, 3, padding=1)))
        self.norm_out = nn.GroupNorm(num_groups, width, eps=1e-5)
        self.conv_out = silent(nn.Conv2d(width, out_channels, 3, padding=1))

    def blocks_to_wrap(self) -> list[nn.Module]:
        """The units for checkpointing, compiling and sharding: every residual and every transformer block."""
        return [module for module in self.modules() if isinstance(module, ResidualBlock | TransformerBlock)]

    def embed(self, t: Tensor, cond: Conditioning) -> Tensor:
        """t (B,) and all of ``cond`` that is one vector per picture -> (B, E), with the SiLU all blocks begin with.

        Raises:
            ValueError: ``cond`` lacks labels or sizes that this network is told.
        """
        embedding = self.late(self.time_embedding(t), t, cond)  # (B, E)
        if self.label_embedding is not None:
            if cond.labels is None:
                raise ValueError(
                    "this network is told classes (num_classes) but the conditioning has no labels: choose a text "
                    "encoder that gives them, text_encoder=labels"
                )
            embedding = embedding + self.label_embedding(cond.labels)
        if self.added_embedding is not None:
            told = [cond.pooled] if self.pooled_width else []
            if self.size_features:
                if cond.sizes is None:
                    raise ValueError(
                        "this network is told picture sizes (size_features) but the conditioning has no sizes: fill "
                        "Conditioning.sizes with original, crop and target sizes in pixels"
                    )
                told.append(sinusoidal(cond.sizes, self.size_features).flatten(1))  # (B, 6 * size_features)
            embedding = embedding + self.added_embedding(torch.cat(told, dim=1))
        return F.silu(embedding)

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        embedding = self.embed(t, cond)  # (B, E)
        context, mask = cond.tokens, cond.mask if self.context_mask else None  # (B, L, D), (B, L)
        x = self.conv_in(x)  # (B, channels[0], H, W)
        skips = [x]
        for down in self.down:
            skips += down(x, embedding, context, mask)
            x = skips[-1]
        for layer in self.middle:
            x = layer(x, embedding, context, mask)
        for up in self.up:
            x = up(x, skips, embedding, context, mask)
        return self.conv_out(F.silu(self.norm_out(x)))  # (B, out_channels, H, W)


def silent(last: nn.Module) -> nn.Module:
    """The last layer of a branch or of all, zero at the start as in the published code: blocks begin as identity."""
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return last


def mlp(in_width: int, width: int) -> nn.Sequential:
    """(B, in_width) -> (B, width), the shape of a ``TimeEmbedding``'s."""
    return nn.Sequential(nn.Linear(in_width, width), nn.SiLU(), nn.Linear(width, width))
