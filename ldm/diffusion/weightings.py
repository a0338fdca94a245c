"""Loss weights, each stated once, in x0 space, whatever the network predicts (see interfaces.Weighting).

A squared eps error is SNR times the squared x0 error, so a weight that a paper states on the noise is here multiplied
by the SNR. They are factors on the loss at the times that were drawn: how often a time is drawn is the time law's part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Unweighted:
    """The plain squared error of the network's output."""

    def __call__(self, log_snr: Tensor, x0_factor: Tensor) -> Tensor:
        return torch.ones_like(log_snr)


@dataclass(frozen=True, kw_only=True)
class MinSNR:
    """min(SNR, gamma) on the squared x0 error (Hang et al. 2023, 2303.09556).

    With Epsilon and a variance-preserving schedule this is their min(SNR, gamma) / SNR, with V their
    min(SNR, gamma) / (SNR + 1); both follow from x0_factor.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"MinSNR needs gamma > 0, got gamma={self.gamma}")

    def __call__(self, log_snr: Tensor, x0_factor: Tensor) -> Tensor:
        return torch.exp(log_snr).clamp(max=self.gamma) * x0_factor


@dataclass(frozen=True, kw_only=True)
class SoftMinSNR:
    """SNR * gamma / (SNR + gamma) on the squared x0 error: ``MinSNR`` without its corner.

    Crowson et al. 2024, 2401.11605; their form for data of spread sigma_data is gamma = 1 / sigma_data^2, that is 4 for
    pictures in [-1, 1].
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"SoftMinSNR needs gamma > 0, got gamma={self.gamma}")

    def __call__(self, log_snr: Tensor, x0_factor: Tensor) -> Tensor:
        return self.gamma * torch.sigmoid(log_snr - math.log(self.gamma)) * x0_factor


@dataclass(frozen=True, kw_only=True)
class P2:
    """1 / (k + SNR)^gamma on the squared eps error: less weight on the last details (Choi et al. 2022, 2204.00227).

    Args:
        gamma: How strongly; 0 is the plain eps error, their choice is 0.5 or 1.
        k: Keeps the weight finite where the SNR is 0.
    """

    gamma: float = 1.0
    k: float = 1.0

    def __post_init__(self) -> None:
        if not (self.gamma >= 0 and self.k > 0):
            raise ValueError(f"P2 needs gamma >= 0 and k > 0, got gamma={self.gamma}, k={self.k}")

    def __call__(self, log_snr: Tensor, x0_factor: Tensor) -> Tensor:
        log_k = torch.full_like(log_snr, math.log(self.k))
        return torch.exp(log_snr - self.gamma * torch.logaddexp(log_k, log_snr)) * x0_factor


@dataclass(frozen=True, kw_only=True)
class Sigmoid:
    """sigmoid(bias - log SNR) on the squared eps error.

    Kingma & Gao 2023, 2303.00848; Hoogeboom et al. 2024, 2410.19324. In x0 space that is
    exp(bias) * sigmoid(log SNR - bias): the function of ``SoftMinSNR`` with gamma = exp(bias). Kingma & Gao state it
    under an integral over the log-SNR. It is exactly theirs where the drawn times' log-SNR is uniform; with another law
    of t, the law's density over the log-SNR multiplies it.

    Args:
        bias: The log-SNR at which the weight on eps is one half. Lower leans towards noise, for larger pictures.
    """

    bias: float = 0.0

    def __call__(self, log_snr: Tensor, x0_factor: Tensor) -> Tensor:
        return math.exp(self.bias) * torch.sigmoid(log_snr - self.bias) * x0_factor


@dataclass(frozen=True, kw_only=True)
class EDM:
    """SNR + 1 / sigma_data^2 on the squared x0 error (Karras et al. 2022, 2206.00364, table 1).

    Their (sigma^2 + sigma_data^2) / (sigma * sigma_data)^2, with sigma / alpha for sigma. With the EDM parameterization
    the network's plain squared error is left, for every schedule.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise ValueError(f"EDM needs sigma_data > 0, got sigma_data={self.sigma_data}")

    def __call__(self, log_snr: Tensor, x0_factor: Tensor) -> Tensor:
        return (torch.exp(log_snr) + self.sigma_data**-2) * x0_factor
