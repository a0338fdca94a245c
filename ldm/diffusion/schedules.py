"""Noise schedules: how much picture and how much noise there is at time t.

Every schedule states ``x_t = alpha(t) * x0 + sigma(t) * eps`` from t = 0 (data) to t = 1 (noise). They compute
in float32, or in float64 when t is float64, also under autocast. Here stand the base class and the schedules that are
formulas in t; tables are in ``tabulated.py``, wrappers in ``shifts.py`` and ``zero_terminal_snr.py``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.interfaces import NoiseSchedule

_ENOUGH = (torch.float32, torch.float64)


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or unchanged when it is float64: bfloat16 has 8 bits, too few for a time."""
    return x if x.dtype in _ENOUGH else x.float()


class Schedule(ABC):
    """Base of all schedules: alpha and sigma, with defaults for the rest of ``interfaces.NoiseSchedule``."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The factor on the picture, >= 0: t in [0, 1], any shape -> same shape, float32 or better."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The factor on the noise, 0 at t = 0: t in [0, 1], any shape -> same shape, float32 or better."""

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is told of t: t itself."""
        return t

    def for_latents(self, shape: tuple[int, int, int]) -> NoiseSchedule:
        """The schedule for latents (C, H, W): this one, whatever their shape."""
        return self


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """The straight line from data to noise (Liu et al. 2022, 2209.03003; Lipman et al. 2022)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - at_least_float32(t)

    def sigma(self, t: Tensor) -> Tensor:
        return at_least_float32(t)


@dataclass(frozen=True)
class Cosine(Schedule):
    """A quarter of the unit circle, the trigonometric path (Salimans & Ho 2022, 2202.00512).

    Nichol & Dhariwal's schedule (``ImprovedCosine``) without its offset at t = 0.
    """

    def alpha(self, t: Tensor) -> Tensor:
        # not cos(pi/2 * t): that is -4e-8 at t = 1 in float32, this is exactly 0
        return torch.sin(0.5 * math.pi * (1 - at_least_float32(t)))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * at_least_float32(t))


@dataclass(frozen=True, kw_only=True)
class ImprovedCosine(Schedule):
    """alpha(t) = f(t) / f(0) with f(t) = cos(pi/2 * (t + s) / (1 + s)) (Nichol & Dhariwal 2021, 2102.09672, eq. 17).

    Their discrete form caps each beta at 0.999, which takes hold in the last of 1000 steps only: there alpha is 4.9e-5,
    here it is exactly 0 at t = 1. At t = k / 1000 for all k < 1000 the two are equal. The network is told t, where
    networks trained on their steps were told 1000 t - 1.

    Args:
        offset: Their s, which keeps the first steps from being vanishingly small.
    """

    offset: float = 0.008

    def __post_init__(self) -> None:
        if not self.offset > 0:
            raise ValueError(
                f"ImprovedCosine needs offset > 0, got offset={self.offset}; without it, use Cosine"
            )

    def alpha(self, t: Tensor) -> Tensor:
        # the cosine as the sine of what is left to 90 degrees: exactly 0 at t = 1
        return torch.sin(self._angle(1 - at_least_float32(t))) / self._f0

    def sigma(self, t: Tensor) -> Tensor:
        # f(0)^2 - f(t)^2 as a product of sines: no cancellation near t = 0
        t = at_least_float32(t)
        product = torch.sin(self._angle(t)) * torch.sin(self._angle(t + 2 * self.offset))
        return torch.sqrt(product) / self._f0

    def _angle(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi / (1 + self.offset) * t

    @property
    def _f0(self) -> float:
        return math.cos(0.5 * math.pi * self.offset / (1 + self.offset))


@dataclass(frozen=True, kw_only=True)
class VPLinear(Schedule):
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

    A search by nested intervals serves every schedule, as the log-SNR falls in t. Values out of its reach give 0 or 1.
    """
    value = value.detach().to("cpu", torch.float64)[..., None]
    inner = torch.arange(1, 16, dtype=torch.float64)
    low, width = torch.zeros_like(value), 1.0
    for _ in range(16):  # 16 parts 16 times: below float64's resolution around any t > 1e-3
        width /= 16
        too_clean = log_snr(schedule, low + width * inner) > value  # the time sought lies later
        low = low + width * too_clean.sum(-1, keepdim=True)
    return (low + 0.5 * width)[..., 0]
