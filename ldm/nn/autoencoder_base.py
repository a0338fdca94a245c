"""What every autoencoder can do, so that one training module and one codec serve them all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Autoencoder(nn.Module, ABC):
    """images -> moments of a posterior -> latents -> images. A subclass sets these three in its constructor:

    Attributes:
        latent_channels: C.
        downsample: f, the stride.
        architecture: The constructor's arguments as plain data: what makes this network again.
    """

    latent_channels: int
    downsample: int
    architecture: dict[str, Any]

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """images (B, 3, fH, fW) in [-1, 1] -> moments (B, 2C, H, W): mean and log-variance, float32."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """latents (B, C, H, W), not normalised -> images (B, 3, fH, fW) about [-1, 1], float32."""

    @property
    @abstractmethod
    def last_layer(self) -> nn.Conv2d:
        """The decoder's last convolution, whose gradient balances a discriminator against the reconstruction."""

    @abstractmethod
    def blocks_to_wrap(self) -> list[nn.Module]:
        """The units for checkpointing, compiling and sharding."""

    def check_size(self, images: Tensor) -> None:
        """Raises ValueError for pictures whose sides the stride does not divide."""
        height, width = images.shape[-2:]
        if height % self.downsample or width % self.downsample:
            raise ValueError(f"picture {height}x{width} is not divisible by the stride {self.downsample}")


def without_variance(mean: Tensor) -> Tensor:
    """mean (B, C, H, W) -> moments (B, 2C, H, W) whose log-variance is -30: a posterior without any spread."""
    return torch.cat([mean, torch.full_like(mean, -30.0)], dim=1)
