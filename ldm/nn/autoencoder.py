"""The convolutional KL autoencoder of latent diffusion (2112.10752, section 3.1 and appendix G).

Residual blocks with group norm, strided convolutions down, nearest-neighbour upsampling. ``patch_size`` folds small
squares of pixels into channels before the first convolution (space-to-depth, as in 1609.05158), which removes the
most expensive level: for small pictures on small machines that is most of the cost.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nn.attention import SelfAttention
from ldm.nn.autoencoder_base import Autoencoder
from ldm.nn.bottlenecks import Bottleneck, Gaussian


class ResidualBlock(nn.Module):
    """(norm, SiLU, 3x3 convolution) twice, added to the input: (B, c_in, h, w) -> (B, c_out, h, w)."""

    def __init__(self, in_channels: int, out_channels: int, *, num_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(num_groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions: (B, c, h, w) -> same."""

    def __init__(self, channels: int, *, num_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, channels, eps=1e-6)
        self.attention = SelfAttention(width=channels, num_heads=1, qk_norm=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.attention(self.norm(x).flatten(2).transpose(1, 2))  # (B, h*w, c)
        return x + h.transpose(1, 2).reshape(x.shape)


class Downsample(nn.Module):
    """Halves each side by a strided 3x3 convolution, padded on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles each side by nearest neighbours and a 3x3 convolution: no checkerboard."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def middle(channels: int, *, num_groups: int, attention: bool) -> nn.Sequential:
    """The blocks at the lowest resolution, the only place with a global view."""
    layers: list[nn.Module] = [ResidualBlock(channels, channels, num_groups=num_groups)]
    if attention:
        layers.append(AttentionBlock(channels, num_groups=num_groups))
    return nn.Sequential(*layers, ResidualBlock(channels, channels, num_groups=num_groups))


class Encoder(nn.Sequential):
    """images (B, 3, fH, fW) -> (B, out_channels, H, W)."""

    def __init__(
        self,
        *,
        out_channels: int,
        channels: Sequence[int],
        blocks_per_level: int,
        patch_size: int,
        num_groups: int,
        attention: bool,
    ) -> None:
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(patch_size),
            nn.Conv2d(3 * patch_size**2, channels[0], 3, padding=1),
        ]
        width = channels[0]
        for level, out in enumerate(channels):
            if level > 0:
                layers.append(Downsample(width))
            for _ in range(blocks_per_level):
                layers.append(ResidualBlock(width, out, num_groups=num_groups))
                width = out
        layers.append(middle(width, num_groups=num_groups, attention=attention))
        layers += [nn.GroupNorm(num_groups, width, eps=1e-6), nn.SiLU()]
        super().__init__(*layers, nn.Conv2d(width, out_channels, 3, padding=1))


class Decoder(nn.Sequential):
    """latents (B, C, H, W) -> images (B, 3, fH, fW). One block more per level than the encoder, as published."""

    def __init__(
        self,
        *,
        in_channels: int,
        channels: Sequence[int],
        blocks_per_level: int,
        patch_size: int,
        num_groups: int,
        attention: bool,
    ) -> None:
        width = channels[-1]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1)]
        layers.append(middle(width, num_groups=num_groups, attention=attention))
        for level, out in reversed(list(enumerate(channels))):
            for _ in range(blocks_per_level + 1):
                layers.append(ResidualBlock(width, out, num_groups=num_groups))
                width = out
            if level > 0:
                layers.append(Upsample(width))
        layers += [nn.GroupNorm(num_groups, width, eps=1e-6), nn.SiLU()]
        layers.append(nn.Conv2d(width, 3 * patch_size**2, 3, padding=1))
        super().__init__(*layers, nn.PixelShuffle(patch_size))


class AutoencoderKL(Autoencoder):
    """images -> posterior moments -> latents -> images.

    Args:
        latent_channels: C.
        channels: Channels at each level, highest resolution first; each level after the first halves the side, so
            the stride is f = patch_size * 2^(len(channels) - 1).
        blocks_per_level: Residual blocks per level of the encoder; the decoder has one more.
        patch_size: Side of the pixel squares folded into channels at the border; 1 for the published networks.
        num_groups: Groups of every group norm.
        attention: Self-attention at the lowest resolution.
        encoder_channels: Channels of the encoder where they differ from the decoder's; reconstructions gain more
            from a wide decoder than from a wide encoder.
        quant_convs: A 1x1 convolution behind the encoder and one before the decoder, as Stable Diffusion 1.x, 2.x and
            SDXL have them.
        bottleneck: What stands between encoder and decoder; a Gaussian posterior when None.
    """

    def __init__(
        self,
        *,
        latent_channels: int,
        channels: Sequence[int],
        blocks_per_level: int = 2,
        patch_size: int = 1,
        num_groups: int = 32,
        attention: bool = True,
        encoder_channels: Sequence[int] | None = None,
        quant_convs: bool = False,
        bottleneck: Bottleneck | None = None,
    ) -> None:
        super().__init__()
        encoder_channels = channels if encoder_channels is None else encoder_channels
        if len(encoder_channels) != len(channels):
            raise ValueError(
                f"encoder_channels={encoder_channels} must have as many levels as channels={channels}"
            )
        for width in (*channels, *encoder_channels):
            if width % num_groups:
                raise ValueError(f"num_groups={num_groups} does not divide {width}, one of the channels")
        self.architecture = {  # plain data that makes this network again
            "latent_channels": latent_channels,
            "channels": list(channels),
            "blocks_per_level": blocks_per_level,
            "patch_size": patch_size,
            "num_groups": num_groups,
            "attention": attention,
            "encoder_channels": list(encoder_channels),
            "quant_convs": quant_convs,
        }
        self.latent_channels = latent_channels
        self.downsample = patch_size * 2 ** (len(channels) - 1)
        self.set_bottleneck(bottleneck, default=Gaussian())
        self.encoder = Encoder(
            out_channels=self.bottleneck.encoder_channels,
            channels=encoder_channels,
            blocks_per_level=blocks_per_level,
            patch_size=patch_size,
            num_groups=num_groups,
            attention=attention,
        )
        self.decoder = Decoder(
            in_channels=latent_channels,
            channels=channels,
            blocks_per_level=blocks_per_level,
            patch_size=patch_size,
            num_groups=num_groups,
            attention=attention,
        )
        encoded = self.bottleneck.encoder_channels
        self.quant_conv: nn.Module = nn.Conv2d(encoded, encoded, 1) if quant_convs else nn.Identity()
        self.post_quant_conv: nn.Module = (
            nn.Conv2d(latent_channels, latent_channels, 1) if quant_convs else nn.Identity()
        )

    def encode(self, images: Tensor) -> Tensor:
        """images (B, 3, fH, fW) in [-1, 1] -> moments (B, 2C, H, W): mean and log-variance, the latter in [-30, 20]."""
        self.check_size(images)
        return self.bottleneck.moments(self.quant_conv(self.encoder(images)).float())

    def decode(self, latents: Tensor) -> Tensor:
        """latents (B, C, H, W), not normalised -> images (B, 3, fH, fW) about [-1, 1], float32."""
        return self.decoder(self.post_quant_conv(self.bottleneck.enter(latents))).float()

    def features(self, images: Tensor) -> list[Tensor]:
        """After the last block of each level, and after the middle."""
        found: list[Tensor] = []
        h = images
        for layer in self.encoder:
            if isinstance(layer, Downsample):
                found.append(h)
            h = layer(h)
            if isinstance(layer, nn.Sequential):  # the middle
                found.append(h)
        return found

    def encoding_parts(self) -> list[nn.Module]:
        return [self.encoder, self.quant_conv, self.bottleneck]

    @property
    def last_layer(self) -> nn.Conv2d:
        layer = self.decoder[-2]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def blocks_to_wrap(self) -> list[nn.Module]:
        """Every residual and attention block."""
        return [module for module in self.modules() if isinstance(module, ResidualBlock | AttentionBlock)]
