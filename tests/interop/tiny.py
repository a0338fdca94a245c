"""Tiny random networks of every kind that has a pipeline in diffusers, as an export sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.diffusion.parameterizations import Epsilon, Flow, V
from ldm.diffusion.schedules import Cosine, RectifiedFlow, VPLinear
from ldm.interfaces import Conditioning
from ldm.interop.formats import Model
from ldm.interop.probe import probe_for
from ldm.nn.autoencoder import AutoencoderKL
from ldm.nn.dit import DiT
from ldm.nn.flux import Flux
from ldm.nn.mmdit import MMDiT
from ldm.nn.pixart import PixArt
from ldm.nn.positions import SinCos
from ldm.nn.unet import UNet
from tests.interop.witness import with_random_weights

WIDTH, POOLED, LENGTH, SIDE = 16, 12, 5, 8


def unet(**changes: Any) -> UNet:
    options = {
        "in_channels": 4,
        "out_channels": 4,
        "channels": [16, 32],
        "blocks_per_level": 1,
        "transformer_depth": [1, 1],
        "middle_depth": 1,
        "num_heads": [2, 2],
        "context_width": WIDTH,
        "context_mask": False,
        "num_groups": 8,
    }
    return UNet(**{**options, **changes})


def mmdit() -> MMDiT:
    return MMDiT(
        in_channels=4,
        patch_size=2,
        width=24,
        depth=2,
        num_heads=2,
        context_width=WIDTH,
        pooled_width=POOLED,
        max_size=8,
        base_size=4,
        qk_norm=True,
        context_mask=False,
    )


def flux() -> Flux:
    return Flux(
        in_channels=4,
        patch_size=2,
        width=24,
        num_double_blocks=1,
        num_single_blocks=1,
        num_heads=2,
        context_width=WIDTH,
        pooled_width=POOLED,
        rotary_widths=[4, 4, 4],
        guidance=3.5,
        context_mask=False,
    )


def pixart() -> PixArt:
    return PixArt(
        in_channels=4,
        patch_size=2,
        width=24,
        depth=2,
        num_heads=2,
        context_width=WIDTH,
        micro_conditioning=False,
        out_channels=8,
        positions=SinCos(base_size=SIDE // 2),
    )


def dit() -> DiT:
    return DiT(
        in_channels=4,
        patch_size=2,
        width=24,
        depth=2,
        num_heads=2,
        num_classes=3,
        qk_norm=False,
        out_channels=8,
        frequency_shift=1.0,
        norm3_eps=1e-5,
        positions=SinCos(base_size=SIDE // 2),
    )


@dataclass(frozen=True)
class Kind:
    """A network with a process that its pipeline can do."""

    network: Any
    schedule: Any
    parameterization: Any


KINDS = {
    "StableDiffusionPipeline": Kind(unet, VPLinear(), Epsilon()),
    "StableDiffusionXLPipeline": Kind(lambda: unet(pooled_width=POOLED, size_features=8), Cosine(), V()),
    "StableDiffusion3Pipeline": Kind(mmdit, RectifiedFlow(), Flow()),
    "FluxPipeline": Kind(flux, RectifiedFlow(), Flow()),
    "PixArtAlphaPipeline": Kind(pixart, VPLinear(), Epsilon()),
    "DiTPipeline": Kind(dit, VPLinear(), Epsilon()),
}


def autoencoder() -> AutoencoderKL:
    network = AutoencoderKL(
        latent_channels=4, channels=[8, 16], blocks_per_level=1, num_groups=4, attention=True
    )
    with_random_weights(network)
    return network


def conditioning(batch: int = 2, *, labels: bool = False) -> Conditioning:
    torch.manual_seed(3)
    mask = torch.ones(batch, LENGTH, dtype=torch.bool)
    mask[0, 3:] = False
    return Conditioning(
        tokens=torch.randn(batch, LENGTH, WIDTH),
        mask=mask,
        pooled=torch.randn(batch, POOLED),
        labels=torch.arange(batch) if labels else None,
    )


def model(kind: Kind, **changes: Any) -> Model:
    """What ``ldm export`` makes of a run: latents normalised channel by channel."""
    network = with_random_weights(kind.network())
    values: dict[str, Any] = {
        "parts": {"network": network},
        "autoencoder": autoencoder(),
        "mean": (0.1, -0.2, 0.3, 0.0),
        "std": (0.5, 1.0, 2.0, 1.5),
        "codec_file": None,
        "codec_hash": "abc",
        "schedule": kind.schedule,
        "parameterization": kind.parameterization,
        "t_range": (0.0, 1.0),
        "latent_size": (SIDE, SIDE),
        "class_names": ("cat", "dog", "owl"),
        "probe": probe_for(conditioning(labels=True), channels=4, latent_size=(SIDE, SIDE), stride=2),
        "origin": "ema weights of tiny/one after 64 images",
    }
    return Model(**{**values, **changes})


def noise(batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(5))


def all_of(network: nn.Module) -> list[Tensor]:
    return list(network.state_dict().values())
