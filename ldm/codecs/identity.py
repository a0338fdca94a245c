"""No autoencoder: diffusion on pixels, through the same contract."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class IdentityCodec(nn.Module):
    """Latents are the pixels, times ``scale`` (pictures in [-1, 1] have a standard deviation of about 0.5).

    Args:
        scale: Factor from pixels to latents.
    """

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"scale={scale} must be positive")
        self.channels = 3
        self.downsample = 1
        self.content_hash = ""
        self.scale = scale

    def moments(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) -> (B, 6, H, W): the pixels and a log-variance of -30, no spread."""
        return torch.cat([images, torch.full_like(images, -30.0)], dim=1)

    def latents(self, moments: Tensor, *, noise: Tensor | None) -> Tensor:
        """(B, 6, H, W) -> (B, 3, H, W); ``noise`` has no effect, there is no posterior."""
        return moments[:, :3].float() * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W)."""
        return latents / self.scale
