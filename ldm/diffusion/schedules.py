"""Noise schedules: how much picture and how much noise there is at time t.

Every schedule states ``x_t = alpha(t) * x0 + sigma(t) * eps`` from t = 0 (data) to t = 1 (noise). They compute
in float32, or in float64 when t is float64, also under autocast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.interfaces import NoiseSchedule


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or unchanged when it is float64: bfloat16 has 8 bits, too few for a time."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True)
class RectifiedFlow:
    """The straight line from data to noise (Liu et al. 2022, 2209.03003; Lipman et al. 2022)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - at_least_float32(t)

    def sigma(self, t: Tensor) -> Tensor:
        return at_least_float32(t)


@dataclass(frozen=True)
class Cosine:
    """A quarter of the unit circle (Nichol & Dhariwal 2021, 2102.09672, without their offset at t = 0)."""

    def alpha(self, t: Tensor) -> Tensor:
        # not cos(pi/2 * t): that is -4e-8 at t = 1 in float32, this is exactly 0
        return torch.sin(0.5 * math.pi * (1 - at_least_float32(t)))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * at_least_float32(t))


@dataclass(frozen=True, kw_only=True)
class VPLinear:
    """Variance preserving, the noise rate beta rising linearly in t (Song et al. 2020, 2011.13456, eq. 33).

    The defaults are the continuous form of DDPM's 1000 steps, beta = 1e-4 ... 0.02 (Ho et al. 2020): the
    rates times 1000. At t = 1 a trace of the picture is left, alpha(1) = 0.0066.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(
                f"0 < beta_min <= beta_max must hold, got beta_min={self.beta_min}, beta_max={self.beta_max}"
            )

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        # sqrt(1 - alpha^2), by expm1 since 1 - alpha^2 cancels where t is small
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)))

    def _log_alpha(self, t: Tensor) -> Tensor:
        t = at_least_float32(t)
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min


def log_snr(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """log(alpha^2 / sigma^2), any shape -> same shape; +inf where sigma is 0, -inf where alpha is 0."""
    return 2 * (torch.log(schedule.alpha(t)) - torch.log(schedule.sigma(t)))


def t_at_log_snr(schedule: NoiseSchedule, value: Tensor) -> Tensor:
    """The time at which the schedule has this log-SNR: any shape -> same shape, float64, on the CPU.

    Bisection serves every schedule, as the log-SNR falls in t. Values out of its reach give 0 or 1.
    """
    value = value.detach().to("cpu", torch.float64)
    low, high = torch.zeros_like(value), torch.ones_like(value)
    for _ in range(64):  # halves [0, 1] below float64's resolution around any t > 1e-3
        middle = 0.5 * (low + high)
        too_clean = log_snr(schedule, middle) > value  # the time sought lies later
        low, high = torch.where(too_clean, middle, low), torch.where(too_clean, high, middle)
    return 0.5 * (low + high)
