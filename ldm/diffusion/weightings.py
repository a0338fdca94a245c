"""Loss weights, each stated once, in x0 space, whatever the network predicts (see interfaces.Weighting)."""

from __future__ import annotations

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
