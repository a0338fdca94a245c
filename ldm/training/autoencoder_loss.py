"""Terms of an autoencoder's loss: each one object, added up with its weight by the module.

A term sees the pictures, their reconstructions and the posterior's moments and returns a scalar. Reconstruction terms
are means over all pixels and channels, in units of the [-1, 1] range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class AutoencoderTerm(Protocol):
    weight: float

    def __call__(self, images: Tensor, reconstructions: Tensor, moments: Tensor) -> Tensor:
        """images and reconstructions (B, 3, fH, fW), moments (B, 2C, H, W) -> scalar, not yet weighted."""
        ...


@dataclass(frozen=True, kw_only=True)
class SquaredError:
    """Mean squared error: maximises PSNR."""

    weight: float = 1.0

    def __call__(self, images: Tensor, reconstructions: Tensor, moments: Tensor) -> Tensor:
        return (reconstructions - images).square().mean()


@dataclass(frozen=True, kw_only=True)
class AbsoluteError:
    """Mean absolute error: sharper than the squared one where edges are uncertain."""

    weight: float = 1.0

    def __call__(self, images: Tensor, reconstructions: Tensor, moments: Tensor) -> Tensor:
        return (reconstructions - images).abs().mean()


@dataclass(frozen=True, kw_only=True)
class Charbonnier:
    """Mean of sqrt(error^2 + eps^2) - eps: absolute error, smooth at zero (Charbonnier et al. 1994)."""

    weight: float = 1.0
    eps: float = 0.01

    def __call__(self, images: Tensor, reconstructions: Tensor, moments: Tensor) -> Tensor:
        return torch.sqrt((reconstructions - images).square() + self.eps**2).mean() - self.eps


@dataclass(frozen=True, kw_only=True)
class KLDivergence:
    """KL(posterior || standard normal) in nats, mean over latent values (1312.6114, appendix B)."""

    weight: float = 1e-6

    def __call__(self, images: Tensor, reconstructions: Tensor, moments: Tensor) -> Tensor:
        mean, log_var = moments.chunk(2, dim=1)
        return 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).mean()
