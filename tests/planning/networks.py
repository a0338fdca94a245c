"""A small network of each kind on the meta device, with inputs that suit it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldm.interfaces import Conditioning
from ldm.nn.dit import DiT
from ldm.nn.flux import Flux
from ldm.nn.mmdit import MMDiT
from ldm.nn.pixart import PixArt
from ldm.nn.unet import UNet

WIDTH = 24  # D and P


def unet() -> nn.Module:
    return UNet(
        in_channels=4,
        out_channels=4,
        channels=[16, 32],
        blocks_per_level=2,
        transformer_depth=[0, 2],
        middle_depth=1,
        num_heads=[1, 2],
        context_width=WIDTH,
        pooled_width=WIDTH,
        num_groups=8,
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": unet,
    "dit": lambda: DiT(
        in_channels=4, patch_size=2, width=32, depth=3, num_heads=2, context_width=WIDTH, pooled_width=WIDTH
    ),
    "pixart": lambda: PixArt(
        in_channels=4, patch_size=2, width=32, depth=3, num_heads=2, context_width=WIDTH
    ),
    "mmdit": lambda: MMDiT(
        in_channels=4,
        patch_size=2,
        width=32,
        depth=3,
        num_heads=2,
        context_width=WIDTH,
        pooled_width=WIDTH,
        max_size=16,
        base_size=16,
    ),
    "flux": lambda: Flux(
        in_channels=4,
        patch_size=2,
        width=32,
        num_double_blocks=2,
        num_single_blocks=3,
        num_heads=2,
        context_width=WIDTH,
        pooled_width=WIDTH,
        rotary_widths=[4, 6, 6],
    ),
}


def inputs(batch: int, device: str) -> tuple[Tensor, Tensor, Conditioning]:
    """x, t and what the networks above are told."""
    cond = Conditioning(
        tokens=torch.zeros(batch, 7, WIDTH, device=device),
        mask=torch.ones(batch, 7, dtype=torch.bool, device=device),
        pooled=torch.zeros(batch, WIDTH, device=device),
    )
    return torch.zeros(batch, 4, 16, 16, device=device), torch.zeros(batch, device=device), cond
