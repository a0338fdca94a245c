"""Denoisers whose answers are known exactly, with the paths of the probability-flow ODE through them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.interfaces import NoiseSchedule, Prediction


@dataclass(frozen=True)
class Gaussian:
    """The exact denoiser of data N(mean, std^2), and the exact path of the probability-flow ODE through it.

    x_t is N(alpha * mean, alpha^2 std^2 + sigma^2), and the flow keeps each point's place in units of that spread.
    """

    schedule: NoiseSchedule
    mean: float = 0.5
    std: float = 0.7

    def __call__(self, x_t: Tensor, t: Tensor | float) -> Prediction:
        alpha, sigma = alpha_sigma(self.schedule, x_t, t)
        surprise = (x_t - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)
        return Prediction(x0=self.mean + alpha * self.std**2 * surprise, eps=sigma * surprise)

    def path(self, x: Tensor, start: float, end: float) -> Tensor:
        """Where the flow takes x from time ``start`` to time ``end``."""
        alpha, spread = self._moments(start)
        alpha_end, spread_end = self._moments(end)
        return alpha_end * self.mean + (x - alpha * self.mean) * spread_end / spread

    def _moments(self, t: float) -> tuple[float, float]:
        time = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = float(self.schedule.alpha(time)), float(self.schedule.sigma(time))
        return alpha, (alpha**2 * self.std**2 + sigma**2) ** 0.5


@dataclass(frozen=True)
class Mixture:
    """The exact denoiser of data from a mixture of normal distributions, each number of x on its own.

    In one dimension the flow cannot overtake itself, so it keeps each point's quantile: the path is exact, too.
    """

    schedule: NoiseSchedule
    means: tuple[float, ...] = (-0.8, 1.0)
    shares: tuple[float, ...] = (0.4, 0.6)
    std: float = 0.35

    def __call__(self, x_t: Tensor, t: Tensor | float) -> Prediction:
        alpha, sigma = alpha_sigma(self.schedule, x_t, t)
        variance = alpha**2 * self.std**2 + sigma**2
        means, shares = x_t.new_tensor(self.means), x_t.new_tensor(self.shares)
        off = x_t[..., None] - alpha[..., None] * means  # (B, C, H, W, K)
        belief = torch.softmax(shares.log() - 0.5 * off**2 / variance[..., None], -1)
        surprise = (belief * off).sum(-1) / variance
        x0 = (belief * means).sum(-1) + alpha * self.std**2 * surprise
        return Prediction(x0=x0, eps=sigma * surprise)

    def path(self, x: Tensor, start: float, end: float) -> Tensor:
        """Where the flow takes x from time ``start`` to time ``end``; float64."""
        quantile = self._below(x, start)
        low, high = torch.full_like(x, -20.0), torch.full_like(x, 20.0)
        for _ in range(60):
            middle = 0.5 * (low + high)
            too_small = self._below(middle, end) < quantile
            low, high = torch.where(too_small, middle, low), torch.where(too_small, high, middle)
        return 0.5 * (low + high)

    def _below(self, x: Tensor, t: float) -> Tensor:
        """The share of x_t below x."""
        alpha, sigma = alpha_sigma(self.schedule, x, t)
        spread = torch.sqrt(alpha**2 * self.std**2 + sigma**2)
        parts = zip(self.shares, self.means, strict=True)
        return sum(
            (share * torch.special.ndtr((x - alpha * mean) / spread) for share, mean in parts),
            x.new_zeros(()),
        )


@dataclass(frozen=True)
class Plane:
    """The exact denoiser of data N(mean, covariance), with two channels that are correlated."""

    schedule: NoiseSchedule
    mean: tuple[float, float] = (0.5, -0.3)
    covariance: tuple[tuple[float, float], tuple[float, float]] = ((0.5, 0.3), (0.3, 0.4))

    def __call__(self, x_t: Tensor, t: Tensor | float) -> Prediction:
        """x_t (B, 2, 1, 1), one t for all rows."""
        alpha, sigma = (x.flatten()[0] for x in alpha_sigma(self.schedule, x_t, t))
        mean, covariance, noisy = self.moments(float(alpha), float(sigma))
        off = x_t[..., 0, 0] - alpha * mean  # (B, 2)
        surprise = torch.linalg.solve(noisy, off.T).T
        x0, eps = mean + alpha * surprise @ covariance, sigma * surprise
        return Prediction(x0=x0[..., None, None], eps=eps[..., None, None])

    def moments(self, alpha: float, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and covariance of the data, and the covariance of x_t."""
        mean = torch.tensor(self.mean, dtype=torch.float64)
        covariance = torch.tensor(self.covariance, dtype=torch.float64)
        return mean, covariance, alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=torch.float64)


def alpha_sigma(schedule: NoiseSchedule, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
    """Both float64 (1 or B, 1, 1, 1), t (B,) or one number."""
    times = torch.as_tensor(t, dtype=torch.float64).reshape(-1, *(1,) * (x.ndim - 1))
    return schedule.alpha(times), schedule.sigma(times)


def no_noise(step: int) -> Tensor:
    """The noise source of a sampler that should need none."""
    raise AssertionError(f"noise was drawn in step {step}")
