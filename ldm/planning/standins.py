"""Parts that stand for what a plan has no files of."""

from __future__ import annotations

from torch import Tensor, nn

from ldm.nn.autoencoder_base import Autoencoder


class PlannedCodec(nn.Module):
    """An autoencoder on the meta device in a codec's place: it has its size and its cost, and no weights.

    Args:
        autoencoder: On the meta device.
        downsample: Its stride.
    """

    def __init__(self, autoencoder: Autoencoder, *, downsample: int) -> None:
        super().__init__()
        self.autoencoder = autoencoder.requires_grad_(False)
        self.channels = autoencoder.latent_channels
        self.downsample = downsample
        self.content_hash = ""

    def moments(self, images: Tensor) -> Tensor:
        """images (B, 3, fH, fW) -> (B, 2C, H, W)."""
        return self.autoencoder.encode(images)

    def latents(self, moments: Tensor, *, noise: Tensor | None) -> Tensor:
        """(B, 2C, H, W) -> (B, C, H, W)."""
        return moments.chunk(2, dim=1)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 3, fH, fW)."""
        return self.autoencoder.decode(latents)
