"""Terms of an autoencoder's loss: each one object, added up with its weight by the module.

A term sees a ``Pass`` and returns a scalar. Reconstruction terms are means over all pixels and channels, in units of
the [-1, 1] range. A term of weight 0 is only measured, in validation. Others stand in ``latent_terms.py`` (what makes
latents easier to model), ``perceptual_terms.py`` and ``adversary.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ldm.nn.autoencoder_base import Autoencoder
from ldm.nn.bottlenecks import GaussianLayer, VQLayer
from ldm.training.autoencoder_pass import Pass


@dataclass(frozen=True, kw_only=True)
class SquaredError:
    """Mean squared error: maximises PSNR."""

    weight: float = 1.0

    def __call__(self, seen: Pass) -> Tensor:
        return (seen.reconstructions - seen.images).square().mean()


@dataclass(frozen=True, kw_only=True)
class AbsoluteError:
    """Mean absolute error: sharper than the squared one where edges are uncertain."""

    weight: float = 1.0

    def __call__(self, seen: Pass) -> Tensor:
        return (seen.reconstructions - seen.images).abs().mean()


@dataclass(frozen=True, kw_only=True)
class Charbonnier:
    """Mean of sqrt(error^2 + eps^2) - eps: absolute error, smooth at zero (Charbonnier et al. 1994)."""

    weight: float = 1.0
    eps: float = 0.01

    def __call__(self, seen: Pass) -> Tensor:
        return torch.sqrt((seen.reconstructions - seen.images).square() + self.eps**2).mean() - self.eps


@dataclass(frozen=True, kw_only=True)
class KLDivergence:
    """KL(posterior || standard normal) in nats, mean over latent values (1312.6114, appendix B).

    Of a posterior whose spread is fixed, or that has none, the mean's part is left: 1/2 mean^2.
    """

    weight: float = 1e-6

    def __call__(self, seen: Pass) -> Tensor:
        mean, log_var = seen.moments.chunk(2, dim=1)
        if not isinstance(seen.autoencoder.bottleneck, GaussianLayer):
            return 0.5 * mean.square().mean()
        return 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).mean()


@dataclass(frozen=True, kw_only=True)
class CodebookLoss:
    """Draws codes to latents and latents to codes, mean squared distances (1711.00937, equation 3).

    Of a codebook that is a running mean only the second is left.

    Args:
        weight: Of the sum.
        commitment: Beta, the weight of the second.
    """

    weight: float = 1.0
    commitment: float = 0.25

    def __call__(self, seen: Pass) -> Tensor:
        layer = seen.autoencoder.bottleneck
        assert isinstance(layer, VQLayer)
        latents = seen.latents
        nearest = layer.quantizer(latents)  # (B, C, H, W)
        loss = self.commitment * F.mse_loss(latents, nearest.detach())
        return loss if layer.quantizer.decay else loss + F.mse_loss(nearest, latents.detach())

    def check(self, autoencoder: Autoencoder, *, has_discriminator: bool) -> None:
        if not isinstance(autoencoder.bottleneck, VQLayer):
            raise ValueError("the term CodebookLoss is for bottleneck=vq: this autoencoder has no codebook")
