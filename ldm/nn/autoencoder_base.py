"""What every autoencoder can do, so that one training module and one codec serve them all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from ldm.nn.bottlenecks import Bottleneck, BottleneckLayer, describe_bottleneck


class Autoencoder(nn.Module, ABC):
    """images -> moments of a posterior -> latents -> images. A subclass sets these in its constructor:

    Attributes:
        latent_channels: C.
        downsample: f, the stride.
        architecture: The constructor's arguments as plain data: what makes this network again. A bottleneck stands in
            it only where it was chosen, as in files from before there was a choice.
        bottleneck: What stands between encoder and decoder.
    """

    latent_channels: int
    downsample: int
    architecture: dict[str, Any]
    bottleneck: BottleneckLayer

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
    def features(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, fH, fW) -> the encoder's maps (B, c, h, w), one for each of its stages, the finest first."""

    @abstractmethod
    def encoding_parts(self) -> list[nn.Module]:
        """What latents depend on: all but the decoder."""

    @abstractmethod
    def blocks_to_wrap(self) -> list[nn.Module]:
        """The units for checkpointing, compiling and sharding."""

    def set_bottleneck(self, chosen: Bottleneck | None, *, default: Bottleneck) -> None:
        """Build it, and put it into the architecture where it was chosen."""
        layer = (chosen or default).build(self.latent_channels)
        assert isinstance(layer, BottleneckLayer)
        self.bottleneck = layer
        if chosen is not None and chosen != default:
            self.architecture["bottleneck"] = describe_bottleneck(chosen)

    def check_size(self, images: Tensor) -> None:
        """Raises ValueError for pictures whose sides the stride does not divide."""
        height, width = images.shape[-2:]
        if height % self.downsample or width % self.downsample:
            raise ValueError(f"picture {height}x{width} is not divisible by the stride {self.downsample}")
