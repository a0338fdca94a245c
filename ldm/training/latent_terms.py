"""Terms that make latents easier to model: by scale equivariance, by the features of another network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nn.autoencoder_base import Autoencoder
from ldm.nn.perceptual import unit
from ldm.training.autoencoder_pass import Pass
from ldm.training.disturbances import shrunk, transformed
from ldm.training.features import Features


@dataclass(frozen=True, kw_only=True)
class ScaleEquivariance:
    """Shrunk latents must decode into the shrunk picture (2502.14831, equation 1): mean squared error.

    Args:
        weight: The paper's alpha.
        factors: By how much both are shrunk; a step has one of them, drawn evenly.
    """

    weight: float = 0.25
    factors: Sequence[int] = (2, 4)

    def __call__(self, seen: Pass) -> Tensor:
        factor = self.factors[int(seen.draw.for_all("scale equivariance") * len(self.factors))]
        return decoding_error(seen, scale=1 / factor, turns=0)

    def check(self, autoencoder: Autoencoder, *, has_discriminator: bool) -> None:
        if not self.factors or min(self.factors) < 2:
            raise ValueError(f"ScaleEquivariance: factors={list(self.factors)} must be 2 or more")


@dataclass(frozen=True, kw_only=True)
class EquivarianceError:
    """How far the decoder is from turning and shrinking with its latents: relative squared error of changed pictures.

    The error of D(changed z) over the spread of the changed pictures, averaged over the changes. Meant to be measured:
    give it the weight 0.

    Args:
        weight: 0 only measures.
        scales: Each goes with each of ``turns``.
        turns: Times 90 degrees.
    """

    weight: float = 0.0
    scales: Sequence[float] = (1.0, 0.5)
    turns: Sequence[int] = (0, 1, 2, 3)

    def __call__(self, seen: Pass) -> Tensor:
        changes = [(s, k) for s in self.scales for k in self.turns if (s, k) != (1.0, 0)]
        spread = seen.originals.var(dim=(0, 2, 3), unbiased=False).mean()
        return torch.stack([decoding_error(seen, scale=s, turns=k) for s, k in changes]).mean() / spread


def decoding_error(seen: Pass, *, scale: float, turns: int) -> Tensor:
    """Mean squared error of decoded changed latents against the changed originals."""
    images, latents = transformed(seen.originals, seen.latents, scale=scale, turns=turns)
    return F.mse_loss(seen.autoencoder.decode(latents), images)


class FeatureAlignment(nn.Module):
    """Latents are drawn towards the features of a frozen network (VA-VAE), up to margins.

    Equations 4 and 5 of "Reconstruction vs. generation" (2501.01423): at each position the cosine between features and
    projected latents shall be 1 - ``margin_cosine`` or more; and the cosines between any two positions of a picture
    shall not differ by more than ``margin_distance`` between both. The paper weighs this by gradient norms besides,
    here ``weight`` is a number.

    Args:
        features: The frozen network; the coarsest of its maps is taken.
        latent_channels: C.
        weight: Of the sum of both.
        margin_cosine: m1.
        margin_distance: m2.
    """

    def __init__(
        self,
        *,
        features: Features,
        latent_channels: int,
        weight: float = 0.1,
        margin_cosine: float = 0.5,
        margin_distance: float = 0.25,
    ) -> None:
        super().__init__()
        self.features = features
        self.latent_channels = latent_channels
        self.weight, self.margin_cosine, self.margin_distance = weight, margin_cosine, margin_distance
        self.projection = nn.Conv2d(latent_channels, features.widths[-1], 1, bias=False)

    def forward(self, seen: Pass) -> Tensor:
        latents = seen.latents
        with torch.no_grad():
            theirs = self.features(seen.originals)[-1].float()  # (B, D, h, w)
            theirs = shrunk(theirs, (latents.shape[-2], latents.shape[-1]))  # (B, D, H, W)
        ours = unit(self.projection(latents)).flatten(2)  # (B, D, N)
        theirs = unit(theirs).flatten(2)
        cosine = (ours * theirs).sum(dim=1)  # (B, N)
        close = F.relu(1 - self.margin_cosine - cosine).mean()
        apart = (ours.mT @ ours - theirs.mT @ theirs).abs()  # (B, N, N)
        return close + F.relu(apart - self.margin_distance).mean()

    def trained(self) -> nn.Module:
        return self.projection

    def check(self, autoencoder: Autoencoder, *, has_discriminator: bool) -> None:
        if autoencoder.latent_channels != self.latent_channels:
            raise ValueError(
                f"FeatureAlignment: latent_channels={self.latent_channels}, and the autoencoder has "
                f"{autoencoder.latent_channels}"
            )
