"""A codec without weights, for trying a recipe out where its autoencoder is not: mean colours of small squares."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PooledCodec(nn.Module):
    """Channel i of a latent is colour i mod 3 of its square of pixels, averaged, times ``scale``.

    It has any shape of latents that a published autoencoder has, and loses everything finer than its stride.

    Args:
        channels: C, at least 3.
        downsample: f, the side of a square.
        scale: Factor from colours to latents; pictures in [-1, 1] have a standard deviation of about 0.5.

    Raises:
        ValueError: Fewer channels than colours, or no stride.
    """

    def __init__(self, *, channels: int, downsample: int = 8, scale: float = 2.0) -> None:
        super().__init__()
        if channels < 3 or downsample < 1 or scale <= 0:
            raise ValueError(
                f"channels={channels} must be at least 3, downsample={downsample} at least 1, scale={scale} positive"
            )
        self.channels = channels
        self.downsample = downsample
        self.scale = scale
        self.content_hash = ""

    def moments(self, images: Tensor) -> Tensor:
        """images (B, 3, fH, fW) -> (B, 2C, H, W): mean colours and a log-variance of -30, no spread."""
        colours = F.avg_pool2d(images, self.downsample)  # (B, 3, H, W)
        mean = torch.cat([colours] * -(-self.channels // 3), dim=1)[:, : self.channels]  # (B, C, H, W)
        return torch.cat([mean, torch.full_like(mean, -30.0)], dim=1)

    def latents(self, moments: Tensor, *, noise: Tensor | None) -> Tensor:
        """(B, 2C, H, W) -> (B, C, H, W); ``noise`` has no effect, there is no posterior."""
        return moments[:, : self.channels].float() * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 3, fH, fW): each colour the mean of its channels, the same all over a square."""
        colours = torch.stack([latents[:, i::3].mean(1) for i in range(3)], dim=1) / self.scale
        return F.interpolate(colours, scale_factor=float(self.downsample), mode="nearest")
