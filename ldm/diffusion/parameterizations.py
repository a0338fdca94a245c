"""What the network is asked to output, each a line through (x0, eps); and the one solve that undoes them all.

Both x_t and the target are linear in (x0, eps)::

    x_t    = alpha * x0 + sigma * eps
    target =     p * x0 +     q * eps

so a network's output and x_t together give x0 and eps, by one 2x2 system, for every schedule.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.interfaces import Prediction


@dataclass(frozen=True)
class Epsilon:
    """The noise (Ho et al. 2020, 2006.11239). Says nothing of x0 where alpha is 0."""

    def target_coeffs(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(alpha), torch.ones_like(alpha)

    def input_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)


@dataclass(frozen=True)
class X0:
    """The clean latents. Says nothing of eps where sigma is 0, that is at t = 0, where no sampler asks."""

    def target_coeffs(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(alpha), torch.zeros_like(alpha)

    def input_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)


@dataclass(frozen=True)
class V:
    """alpha * eps - sigma * x0 (Salimans & Ho 2022, 2202.00512); well-posed at all times."""

    def target_coeffs(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return -sigma, alpha

    def input_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)


@dataclass(frozen=True)
class Flow:
    """eps - x0, the velocity of the rectified flow (Liu et al. 2022); well-posed at all times."""

    def target_coeffs(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(alpha), torch.ones_like(alpha)

    def input_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)


@dataclass(frozen=True, kw_only=True)
class EDM:
    """Preconditioning by the spread of the data (Karras et al. 2022, 2206.00364, table 1), for any alpha and sigma.

    The network's input and target both have variance 1 when the data's is ``sigma_data^2``. With alpha = 1 these are
    their c_skip, c_out and c_in. In general, with d for sigma_data and s = sqrt(alpha^2 d^2 + sigma^2), the target is
    ``(sigma * x0 / d - alpha * d * eps) / s``: x0 where there is noise only, -eps where there is next to none.

    Args:
        sigma_data: Standard deviation of the latents; 1 for normalised ones, 0.5 for pictures in [-1, 1].
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise ValueError(f"EDM needs sigma_data > 0, got sigma_data={self.sigma_data}")

    def target_coeffs(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.input_scale(alpha, sigma)
        return sigma * scale / self.sigma_data, -alpha * scale * self.sigma_data

    def input_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.rsqrt((alpha * self.sigma_data).square() + sigma.square())


def solve(x_t: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor, p: Tensor, q: Tensor) -> Prediction:
    """The (x0, eps) that agree with both x_t and the network's output.

    x_t, output (B, C, H, W); alpha, sigma, p, q broadcast against them, (B, 1, 1, 1).
    """
    det = alpha * q - sigma * p
    return Prediction(x0=(q * x_t - sigma * output) / det, eps=(alpha * output - p * x_t) / det)
