"""Autoencoders, discriminators and trainings of them that are small enough for tests."""

from __future__ import annotations

from typing import Any

import torch

from ldm.nn.autoencoder import AutoencoderKL
from ldm.nn.bottlenecks import Bottleneck
from ldm.nn.discriminator import PatchDiscriminator
from ldm.training.adversary import Adversary, Hinge
from ldm.training.autoencoder_loss import KLDivergence, SquaredError
from ldm.training.autoencoder_module import AutoencoderModule
from ldm.training.autoencoder_pass import Disturbance, Draw, Pass, run
from ldm.training.optim import AdamW, ConstantRate
from tests.training.tiny import batch_at


def autoencoder(bottleneck: Bottleneck | None = None, *, channels: int = 2, seed: int = 0) -> AutoencoderKL:
    """Stride 2: pictures of 8x8 have latents of 4x4."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        latent_channels=channels, channels=(8, 8), blocks_per_level=1, num_groups=4, bottleneck=bottleneck
    )


def adversary(**changes: Any) -> Adversary:
    torch.manual_seed(1)
    options: dict[str, Any] = {
        "discriminator": PatchDiscriminator(channels=8, num_halvings=1, num_groups=4),
        "loss": Hinge(),
        "optimizer": AdamW(lr=1e-3, beta1=0.5),
        "weight": 0.5,
    }
    return Adversary(**{**options, **changes})


def module(**changes: Any) -> AutoencoderModule:
    options: dict[str, Any] = {
        "terms": {"squared_error": SquaredError(), "kl": KLDivergence(weight=1e-3)},
        "optimizer": AdamW(lr=2e-3),
        "lr_schedule": ConstantRate(),
        "num_images": 1000,
        **changes,
    }
    if "autoencoder" not in options:
        options["autoencoder"] = autoencoder()
    return AutoencoderModule(**options)


def passed(
    network: AutoencoderKL,
    *,
    size: int = 4,
    step: int = 0,
    disturbances: dict[str, Disturbance] | None = None,
    discriminator: PatchDiscriminator | None = None,
) -> Pass:
    """The first pictures of the endless stream through ``network``."""
    batch = batch_at(0, size)
    assert batch.images is not None
    draw = Draw.of(batch, seed=0, step=step)
    return run(network, batch.images, draw, disturbances=disturbances or {}, discriminator=discriminator)


def moved(part: torch.nn.Module) -> set[str]:
    """Names of the weights with a gradient that is not zero."""
    return {name for name, x in part.named_parameters() if x.grad is not None and bool(x.grad.any())}
