"""The variance-exploding schedule: the picture stays as it is and the noise grows over it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.schedules import Schedule, at_least_float32


@dataclass(frozen=True, kw_only=True)
class VarianceExploding(Schedule):
    """alpha = 1, and sigma up to ``sigma_max`` along the ramp of EDM (Karras et al. 2022, 2206.00364, eq. 5).

    Their ramp is linear in sigma^(1/rho) and starts at ``sigma_min``. Here it is lowered by ``sigma_min``, so that
    t = 0 is clean data as in every schedule, and stretched to end at ``sigma_max``::

        sigma(t) = (a + (b - a) t)^rho - a^rho      a = sigma_min^(1/rho)      b = (sigma_max + sigma_min)^(1/rho)

    Equal steps in t are therefore nearly their sampling steps. alpha(1) is 1 and not 0: what sampling starts from is
    ``sigma(1) * noise``, which hides the picture by its size alone.

    Args:
        sigma_min: Noise level about which the ramp turns from powers to linear, and below which the network is told no
            finer time; 0.002 is a quarter of a grey level of a picture in [-1, 1].
        sigma_max: Noise level at t = 1; far above the spread of the data.
        rho: The larger, the more of [0, 1] belongs to small sigma.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"0 < sigma_min < sigma_max must hold, got sigma_min={self.sigma_min}, sigma_max={self.sigma_max}"
            )
        if not self.rho > 0:
            raise ValueError(f"VarianceExploding needs rho > 0, got rho={self.rho}")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(at_least_float32(t))

    def sigma(self, t: Tensor) -> Tensor:
        # The formula above divided by a^rho = sigma_min, by expm1 since the difference cancels where t is small
        slope = math.expm1(math.log1p(self.sigma_max / self.sigma_min) / self.rho)  # (b - a) / a
        return self.sigma_min * torch.expm1(self.rho * torch.log1p(slope * at_least_float32(t)))

    def network_time(self, t: Tensor) -> Tensor:
        """EDM's c_noise = ln(sigma) / 4, in [ln(sigma_min) / 4, ln(sigma_max) / 4]: -1.55 ... 1.10 by default."""
        return torch.log(self.sigma(t).clamp(min=self.sigma_min)) / 4
