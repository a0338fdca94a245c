"""The deep-compression autoencoder DC-AE (2410.10733, section 3): strides of 32 and more.

At such strides a plain encoder trains badly. Here every change of resolution has a shortcut without parameters that
moves pixels into channels, or back (residual autoencoding), so that convolutions only learn what it leaves over. The
lower resolutions have ReLU linear attention (2205.14756, section 3.1), whose cost grows with the number of positions
and not with its square. As published there is no posterior: the latents are what the encoder says.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nn.autoencoder_base import Autoencoder
from ldm.nn.bottlenecks import Bottleneck, Deterministic


class ChannelNorm(nn.Module):
    """RMS norm over the channels of each position, with a bias: (B, c, h, w) -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        h = F.rms_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight.to(x.dtype), eps=1e-5)
        return (h + self.bias.to(x.dtype)).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a SiLU between and a norm behind, added to the input: (B, c, h, w) -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv2(F.silu(self.conv1(x))))


class LinearAttention(nn.Module):
    """Multi-scale ReLU linear attention (2205.14756, section 3.1): (B, c, h, w) -> same, added to the input.

    Each entry of ``scales`` is a kernel size: queries, keys and values are gathered over that neighbourhood, too, and
    make up heads of their own.
    """

    def __init__(self, channels: int, *, head_width: int, scales: Sequence[int]) -> None:
        super().__init__()
        if channels % head_width:
            raise ValueError(f"head_width={head_width} does not divide {channels}, one of the channels")
        self.head_width = head_width
        inner = 3 * channels
        self.qkv = nn.Linear(channels, inner, bias=False)
        self.gather = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inner, inner, size, padding=size // 2, groups=inner, bias=False),
                nn.Conv2d(inner, inner, 1, groups=inner // head_width, bias=False),
            )
            for size in scales
        )
        self.out = nn.Linear(channels * (1 + len(scales)), channels, bias=False)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, 3c, h, w)
        qkv = torch.cat([qkv, *(gather(qkv) for gather in self.gather)], dim=1)
        q, k, v = qkv.flatten(2).unflatten(1, (-1, 3, self.head_width)).unbind(2)  # 3 x (B, heads, d, h*w)
        h = relu_attention(q, k, v).to(x.dtype)
        h = h.flatten(1, 2).transpose(1, 2)  # (B, h*w, c * (1 + scales))
        return x + self.norm(self.out(h).transpose(1, 2).unflatten(2, x.shape[-2:]))


def relu_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v (B, heads, d, N) -> (B, heads, d, N), float32: weights are relu(q) . relu(k), normalised over keys.

    Keys and values are summed up before queries see them, so no N x N matrix is made. In float32, since the sums over
    all positions leave bfloat16's precision.
    """
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = F.relu(q.float()), F.relu(k.float()), v.float()
        v = F.pad(v, (0, 0, 0, 1), value=1.0)  # a row of ones: its sum is the normaliser
        h = (v @ k.transpose(-2, -1)) @ q  # (B, heads, d + 1, N)
        return h[:, :, :-1] / (h[:, :, -1:] + 1e-15)


class GatedConvolution(nn.Module):
    """1x1 up, depthwise 3x3, half gates half, 1x1 down (the Mix-FFN of 2410.10629), added to the input."""

    def __init__(self, channels: int, *, ratio: int = 4) -> None:
        super().__init__()
        hidden = 2 * ratio * channels
        self.up = nn.Conv2d(channels, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.down = nn.Conv2d(ratio * channels, channels, 1, bias=False)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.depthwise(F.silu(self.up(x))).chunk(2, dim=1)
        return x + self.norm(self.down(value * F.silu(gate)))


class TransformerBlock(nn.Sequential):
    """Linear attention, then the gated convolution: (B, c, h, w) -> same."""

    def __init__(self, channels: int, *, head_width: int, scales: Sequence[int]) -> None:
        attention = LinearAttention(channels, head_width=head_width, scales=scales)
        super().__init__(attention, GatedConvolution(channels))


class Downsample(nn.Module):
    """Halves the sides: a convolution, plus the pixels moved into channels and averaged down to ``out_channels``."""

    def __init__(self, in_channels: int, out_channels: int, *, shuffle: bool, shortcut: bool = True) -> None:
        super().__init__()
        self.shuffle, self.shortcut, self.out_channels = shuffle, shortcut, out_channels
        self.conv = (
            nn.Conv2d(in_channels, out_channels // 4, 3, padding=1)
            if shuffle
            else nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.pixel_unshuffle(self.conv(x), 2) if self.shuffle else self.conv(x)
        return h + averaged(F.pixel_unshuffle(x, 2), self.out_channels) if self.shortcut else h


class Upsample(nn.Module):
    """Doubles the sides: a convolution, plus channels repeated and moved into pixels."""

    def __init__(self, in_channels: int, out_channels: int, *, shuffle: bool, shortcut: bool = True) -> None:
        super().__init__()
        self.shuffle, self.shortcut, self.out_channels = shuffle, shortcut, out_channels
        self.conv = nn.Conv2d(in_channels, 4 * out_channels if shuffle else out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.shuffle:
            h = F.pixel_shuffle(self.conv(x), 2)
        else:
            h = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return h + F.pixel_shuffle(repeated(x, 4 * self.out_channels), 2) if self.shortcut else h


def averaged(x: Tensor, channels: int) -> Tensor:
    """(B, c, h, w) -> (B, channels, h, w): means over neighbouring channels."""
    return x.unflatten(1, (channels, -1)).mean(dim=2)


def repeated(x: Tensor, channels: int) -> Tensor:
    """(B, c, h, w) -> (B, channels, h, w): each channel several times in a row."""
    return x.repeat_interleave(channels // x.shape[1], dim=1)


class Encoder(nn.Module):
    """images (B, 3, fH, fW) -> (B, out_channels, H, W). ``levels``: the blocks of each resolution, highest first."""

    def __init__(
        self,
        *,
        out_channels: int,
        channels: Sequence[int],
        levels: Sequence[Sequence[nn.Module]],
        shuffle: bool,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        if levels[0]:
            self.conv_in: nn.Module = nn.Conv2d(3, channels[0], 3, padding=1)
        else:  # the paper's: nothing happens at full resolution
            self.conv_in = Downsample(3, channels[1], shuffle=shuffle, shortcut=False)
        layers: list[nn.Module] = []
        for level, blocks in enumerate(levels):
            layers += blocks
            if blocks and level < len(levels) - 1:
                layers.append(Downsample(channels[level], channels[level + 1], shuffle=shuffle))
        self.layers = nn.Sequential(*layers)
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.conv_in(x))
        return self.conv_out(x) + averaged(x, self.out_channels)


class Decoder(nn.Module):
    """latents (B, C, H, W) -> images (B, 3, fH, fW). ``levels``: the blocks of each resolution, highest first."""

    def __init__(
        self,
        *,
        latent_channels: int,
        channels: Sequence[int],
        levels: Sequence[Sequence[nn.Module]],
        shuffle: bool,
    ) -> None:
        super().__init__()
        self.width = channels[-1]
        self.conv_in = nn.Conv2d(latent_channels, channels[-1], 3, padding=1)
        layers: list[nn.Module] = []
        for level, blocks in reversed(list(enumerate(levels))):
            if blocks and level < len(levels) - 1:
                layers.append(Upsample(channels[level + 1], channels[level], shuffle=shuffle))
            layers += blocks
        self.layers = nn.Sequential(*layers)
        last = channels[0] if levels[0] else channels[1]
        self.norm_out = ChannelNorm(last)
        if levels[0]:
            self.conv_out: nn.Module = nn.Conv2d(last, 3, 3, padding=1)
        else:
            self.conv_out = Upsample(last, 3, shuffle=shuffle, shortcut=False)

    def forward(self, z: Tensor) -> Tensor:
        x = self.layers(self.conv_in(z) + repeated(z, self.width))
        return self.conv_out(F.relu(self.norm_out(x)))


class AutoencoderDC(Autoencoder):
    """images -> latents -> images, at a stride of 2^(len(channels) - 1).

    Args:
        latent_channels: C.
        channels: Channels at each resolution, highest first; each one after the first halves the sides.
        encoder_blocks: Blocks at each resolution. 0 at the first one leaves it out: pictures are halved at once.
        decoder_blocks: The same for the decoder.
        attention_levels: How many of the lowest resolutions have transformer blocks, the others residual ones.
        head_width: Of the linear attention; divides the channels of those resolutions.
        scales: Kernel sizes of neighbourhoods that the linear attention gathers besides single positions.
        pixel_shuffle: Convolutions move pixels into channels and back, as in the paper; else they are strided on the
            way down and follow nearest neighbours on the way up, as in the one published with Sana (2410.10629).
        bottleneck: What stands between encoder and decoder; latents are what the encoder says when None.

    Raises:
        ValueError: Numbers that do not fit each other; they are named.
    """

    def __init__(
        self,
        *,
        latent_channels: int,
        channels: Sequence[int],
        encoder_blocks: Sequence[int],
        decoder_blocks: Sequence[int],
        attention_levels: int = 3,
        head_width: int = 32,
        scales: Sequence[int] = (),
        pixel_shuffle: bool = True,
        bottleneck: Bottleneck | None = None,
    ) -> None:
        super().__init__()
        for name, blocks in {"encoder_blocks": encoder_blocks, "decoder_blocks": decoder_blocks}.items():
            if len(blocks) != len(channels) or min(blocks[1:]) < 1 or blocks[0] < 0:
                raise ValueError(
                    f"{name}={list(blocks)} must have one number for each of channels={list(channels)}, at least 1 "
                    f"but for the first, which may be 0"
                )
        check_widths(latent_channels, channels, first_used=max(encoder_blocks[0], decoder_blocks[0]) > 0)
        self.architecture = {  # plain data that makes this network again
            "latent_channels": latent_channels,
            "channels": list(channels),
            "encoder_blocks": list(encoder_blocks),
            "decoder_blocks": list(decoder_blocks),
            "attention_levels": attention_levels,
            "head_width": head_width,
            "scales": list(scales),
            "pixel_shuffle": pixel_shuffle,
        }
        self.latent_channels = latent_channels
        self.downsample = 2 ** (len(channels) - 1)
        self.set_bottleneck(bottleneck, default=Deterministic())
        encoded = self.bottleneck.encoder_channels
        if channels[-1] % encoded:
            raise ValueError(
                f"bottleneck={type(bottleneck).__name__} wants {encoded} channels of the encoder: that must divide "
                f"{channels[-1]}, the lowest channels"
            )

        def level(number: int, width: int, num_blocks: int) -> list[nn.Module]:
            if number < len(channels) - attention_levels:
                return [ResidualBlock(width) for _ in range(num_blocks)]
            return [TransformerBlock(width, head_width=head_width, scales=scales) for _ in range(num_blocks)]

        def levels(num_blocks: Sequence[int]) -> list[list[nn.Module]]:
            return [level(i, width, n) for i, (width, n) in enumerate(zip(channels, num_blocks, strict=True))]

        self.encoder = Encoder(
            out_channels=encoded,
            channels=channels,
            levels=levels(encoder_blocks),
            shuffle=pixel_shuffle,
        )
        self.decoder = Decoder(
            latent_channels=latent_channels,
            channels=channels,
            levels=levels(decoder_blocks),
            shuffle=pixel_shuffle,
        )

    def encode(self, images: Tensor) -> Tensor:
        """images (B, 3, fH, fW) in [-1, 1] -> moments (B, 2C, H, W): latents, and log-variances of -30 as published."""
        self.check_size(images)
        return self.bottleneck.moments(self.encoder(images).float())

    def decode(self, latents: Tensor) -> Tensor:
        """latents (B, C, H, W), not normalised -> images (B, 3, fH, fW) about [-1, 1], float32."""
        return self.decoder(self.bottleneck.enter(latents)).float()

    def features(self, images: Tensor) -> list[Tensor]:
        """After the last block of each resolution."""
        found: list[Tensor] = []
        h = self.encoder.conv_in(images)
        for layer in self.encoder.layers:
            if isinstance(layer, Downsample):
                found.append(h)
            h = layer(h)
        return [*found, h]

    def encoding_parts(self) -> list[nn.Module]:
        return [self.encoder, self.bottleneck]

    @property
    def last_layer(self) -> nn.Conv2d:
        last = self.decoder.conv_out
        layer = last.conv if isinstance(last, Upsample) else last
        assert isinstance(layer, nn.Conv2d)
        return layer

    def blocks_to_wrap(self) -> list[nn.Module]:
        """Every residual and transformer block."""
        return [module for module in self.modules() if isinstance(module, ResidualBlock | TransformerBlock)]


def check_widths(latent_channels: int, channels: Sequence[int], *, first_used: bool) -> None:
    """Shortcuts average and repeat whole channels: raises ValueError where numbers do not divide each other."""
    used = list(channels) if first_used else list(channels[1:])
    for width in used:
        if width % 4:
            raise ValueError(
                f"channels={list(channels)}: 4 must divide {width}, its pixels come from channels"
            )
    for upper, lower in pairwise(used):
        if 4 * upper % lower:
            raise ValueError(
                f"channels={list(channels)}: {lower} must divide 4 * {upper}, the shortcut between them needs it"
            )
    if channels[-1] % latent_channels:
        raise ValueError(f"latent_channels={latent_channels} must divide {channels[-1]}, the lowest channels")
