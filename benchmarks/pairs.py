"""What ``train_step.py`` measures: a network of ours and one of diffusers' at the same configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.interfaces import Conditioning
from ldm.interop.dit import DiTMap
from ldm.interop.flux import FluxMap
from ldm.interop.pixart import PixArtMap
from ldm.interop.sd3 import SD3Map
from ldm.interop.unet import UNetMap
from ldm.interop.weights import NetworkMap


@dataclass(frozen=True)
class Size:
    """A configuration of theirs, with the shapes of a batch."""

    config: dict[str, Any]
    channels: int  # C
    batch: int
    side: int  # of the latents
    length: int = 77  # tokens of a caption


@dataclass(frozen=True)
class Pair:
    """One class of ours and its peer.

    Args:
        map: Between the two.
        small: For a CPU.
        published: For a GPU: pictures of 256x256.
        tokens: The config's key for the width of the caption's tokens.
        pooled: The config's key for the width of the pooled caption.
    """

    map: NetworkMap
    small: Size
    published: Size
    tokens: str | None = None
    pooled: str | None = None

    def inputs(self, size: Size, device: str) -> tuple[Tensor, Tensor, Conditioning]:
        """x (B, C, H, W), t (B,) and a conditioning with all that the class asks for."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device)

        config, batch = size.config, size.batch
        cond = Conditioning(
            tokens=normal(batch, size.length, config[self.tokens] if self.tokens else 0),
            mask=torch.ones(batch, size.length, dtype=torch.bool, device=device),
            pooled=normal(batch, config[self.pooled] if self.pooled else 0),
            labels=torch.arange(batch, device=device) % 10,
        )
        t = torch.linspace(0.1, 0.9, batch, device=device)
        return normal(batch, size.channels, size.side, size.side), t, cond

    def tie(self, theirs: nn.Module) -> None:
        """Give theirs equal weights where ours has one layer for several of theirs, as published weights have."""
        if isinstance(self.map, DiTMap):
            first, *others = theirs.transformer_blocks
            for block in others:
                block.norm1.emb.load_state_dict(first.norm1.emb.state_dict())


def dit(*, depth: int, heads: int, head_width: int, side: int, batch: int, out_channels: int) -> Size:
    config = {
        "num_attention_heads": heads,
        "attention_head_dim": head_width,
        "in_channels": 4,
        "out_channels": out_channels,
        "num_layers": depth,
        "sample_size": side,
        "patch_size": 2,
        "num_embeds_ada_norm": 1000,
    }
    return Size(config, channels=4, batch=batch, side=side)


def pixart(*, depth: int, heads: int, head_width: int, caption: int, batch: int, length: int) -> Size:
    config = {
        "num_attention_heads": heads,
        "attention_head_dim": head_width,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": depth,
        "cross_attention_dim": heads * head_width,
        "caption_channels": caption,
        "sample_size": 32,
        "use_additional_conditions": False,
    }
    return Size(config, channels=4, batch=batch, side=32, length=length)


def unet(*, channels: tuple[int, ...], caption: int, batch: int) -> Size:
    attending = len(channels) - 1
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D",) * attending + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attending,
        "block_out_channels": channels,
        "cross_attention_dim": caption,
        "attention_head_dim": 8,  # the number of heads
    }
    return Size(config, channels=4, batch=batch, side=32)


def sd3(
    *, depth: int, heads: int, channels: int, caption: int, pooled: int, max_size: int, batch: int
) -> Size:
    config = {
        "sample_size": 128 if max_size > 32 else 32,
        "in_channels": channels,
        "out_channels": channels,
        "num_layers": depth,
        "attention_head_dim": 64,
        "num_attention_heads": heads,
        "joint_attention_dim": caption,
        "caption_projection_dim": 64 * heads,
        "pooled_projection_dim": pooled,
        "pos_embed_max_size": max_size,
    }
    return Size(config, channels=channels, batch=batch, side=32)


def flux(
    *, double: int, single: int, heads: int, axes: tuple[int, int, int], caption: int, batch: int
) -> Size:
    config = {
        "in_channels": 16,
        "num_layers": double,
        "num_single_layers": single,
        "attention_head_dim": sum(axes),
        "num_attention_heads": heads,
        "joint_attention_dim": caption,
        "pooled_projection_dim": caption,
        "axes_dims_rope": axes,
        "guidance_embeds": False,
    }
    return Size(config, channels=4, batch=batch, side=32)


PAIRS = {
    "dit": Pair(
        DiTMap(),
        small=dit(depth=12, heads=6, head_width=64, side=32, batch=8, out_channels=4),  # DiT-S/2
        published=dit(depth=28, heads=16, head_width=72, side=32, batch=64, out_channels=8),  # DiT-XL/2
    ),
    "dit_tiny": Pair(
        DiTMap(),
        small=dit(depth=6, heads=6, head_width=32, side=16, batch=64, out_channels=4),
        published=dit(depth=12, heads=6, head_width=64, side=32, batch=256, out_channels=8),  # DiT-S/2
    ),
    "pixart": Pair(
        PixArtMap(),
        small=pixart(depth=6, heads=6, head_width=64, caption=256, batch=8, length=77),
        published=pixart(depth=28, heads=16, head_width=72, caption=4096, batch=64, length=120),
        tokens="caption_channels",
    ),
    "unet": Pair(
        UNetMap(),
        small=unet(channels=(64, 128, 256), caption=256, batch=8),
        published=unet(channels=(320, 640, 1280, 1280), caption=768, batch=64),  # Stable Diffusion 1.5
        tokens="cross_attention_dim",
    ),
    "mmdit": Pair(
        SD3Map(),
        small=sd3(depth=6, heads=6, channels=4, caption=256, pooled=256, max_size=32, batch=8),
        published=sd3(
            depth=24, heads=24, channels=16, caption=4096, pooled=2048, max_size=192, batch=32
        ),  # medium
        tokens="joint_attention_dim",
        pooled="pooled_projection_dim",
    ),
    "flux": Pair(
        FluxMap(),
        small=flux(double=2, single=4, heads=6, axes=(16, 24, 24), caption=256, batch=8),
        published=flux(
            double=5, single=10, heads=24, axes=(16, 56, 56), caption=4096, batch=16
        ),  # a quarter of it
        tokens="joint_attention_dim",
        pooled="pooled_projection_dim",
    ),
}
