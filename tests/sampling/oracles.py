"""Denoisers whose answers are known exactly."""

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

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        t = t.double().reshape(-1, *(1,) * (x_t.ndim - 1))
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
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


def no_noise(step: int) -> Tensor:
    """The noise source of a sampler that should need none."""
    raise AssertionError(f"noise was drawn in step {step}")
