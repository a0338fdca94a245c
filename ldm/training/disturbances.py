"""Changes of latents on their way into the decoder, in training only: what makes latent spaces easier to model.

Each is one entry of ``task.disturbances``; several act one after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.training.autoencoder_pass import Draw


@dataclass(frozen=True, kw_only=True)
class Equivariance:
    """EQ-VAE (2502.09509, equation 6): latents and pictures are shrunk and turned alike, and the decoder must follow.

    In a share of the steps the reconstruction of the changed picture from the changed latents takes the place of the
    plain one, so the cost stays about what it was. A step has one change for all its pictures.

    Args:
        share: Of the steps that are changed.
        smallest: Scales are drawn evenly from [smallest, 1).
        turn: Turn by 90, 180 or 270 degrees, too.
    """

    share: float = 0.5
    smallest: float = 0.25
    turn: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or not 0 < self.smallest <= 1:
            raise ValueError(
                f"Equivariance: share={self.share} and smallest={self.smallest} must lie in (0, 1]"
            )

    def __call__(self, images: Tensor, latents: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        if draw.for_all("equivariance: whether") >= self.share:
            return images, latents
        scale = self.smallest + (1 - self.smallest) * draw.for_all("equivariance: scale")
        turns = 1 + int(3 * draw.for_all("equivariance: turns")) if self.turn else 0
        return transformed(images, latents, scale=scale, turns=turns)


@dataclass(frozen=True, kw_only=True)
class ChannelMasking:
    """DC-AE 1.5 (2508.00413, section 3.1): pictures must come out of the first few channels alone, as far as they do.

    So channels are ordered: the first ones hold the outlines, later ones details.

    Args:
        kept: How many are kept; each picture has one of these numbers, drawn evenly. The rest become zero.
    """

    kept: Sequence[int]

    def __post_init__(self) -> None:
        if not self.kept or min(self.kept) < 1:
            raise ValueError(
                f"ChannelMasking: kept={list(self.kept)} must be one or more numbers of channels"
            )

    def __call__(self, images: Tensor, latents: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        channels = latents.shape[1]
        if max(self.kept) > channels:
            raise ValueError(
                f"ChannelMasking: kept={list(self.kept)} of latents that have {channels} channels"
            )
        choice = (draw.uniform("channel masking") * len(self.kept)).long()  # (B,)
        kept = torch.tensor(list(self.kept))[choice][:, None]  # (B, 1)
        mask = (torch.arange(channels) < kept)[:, :, None, None]  # (B, C, 1, 1)
        return images, latents * mask.to(latents)


@dataclass(frozen=True, kw_only=True)
class LatentNoise:
    """l-DeTok (2507.15856, section 3.2): latents are blended with noise, and the decoder must see through it.

    z' = (1 - tau) z + tau eps with eps from N(0, gamma^2) and tau even in [0, most], drawn for each picture. The paper
    also hides patches of the picture from its transformer encoder; convolutions have no tokens to leave out.

    Args:
        gamma: Standard deviation of the noise; latents are of about unit variance where a KL term keeps them so.
        most: Largest share of noise.
    """

    gamma: float = 3.0
    most: float = 1.0

    def __post_init__(self) -> None:
        if not self.gamma > 0 or not 0 < self.most <= 1:
            raise ValueError(
                f"LatentNoise: gamma={self.gamma} must be positive and most={self.most} lie in (0, 1]"
            )

    def __call__(self, images: Tensor, latents: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        tau = self.most * draw.uniform("latent noise: share")[:, None, None, None].to(latents)
        eps = draw.normal(latents.shape[1:], "latent noise").to(latents)
        return images, (1 - tau) * latents + tau * self.gamma * eps


def transformed(images: Tensor, latents: Tensor, *, scale: float, turns: int) -> tuple[Tensor, Tensor]:
    """Both shrunk to the nearest size that whole latents have, and turned by ``turns`` times 90 degrees.

    images (B, 3, fH, fW), latents (B, C, H, W) -> (B, 3, fh, fw), (B, C, h, w).
    """
    height, width = latents.shape[-2:]
    stride = images.shape[-1] // width
    size = max(1, round(scale * height)), max(1, round(scale * width))
    images = shrunk(images, (stride * size[0], stride * size[1]))
    return images.rot90(turns, (-2, -1)), shrunk(latents, size).rot90(turns, (-2, -1))


def shrunk(x: Tensor, size: tuple[int, int]) -> Tensor:
    """x (B, c, h, w) -> (B, c, *size), bilinear over all that a new pixel covers."""
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)
