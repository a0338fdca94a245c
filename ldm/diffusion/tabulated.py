"""Schedules of published models: tables of betas, made usable at every t.

A model trained on N steps (N = 1000 in all that matter) knows the noise levels of its table only. Here index i of the
table stands at t = (i + 1) / N, and clean data, which has no index, at t = 0. In between log(alpha) is linear: each
step of the chain becomes a stretch of the variance-preserving process at a constant rate of noise. That holds for the
first stretch, from clean data to index 0, as for all others, so sigma grows like sqrt(t) there, and alpha falls and
sigma rises strictly over all of [0, 1].
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ldm.diffusion.schedules import Schedule, at_least_float32


class Tabulated(Schedule):
    """Base of the schedules that are tables of betas: the variance-preserving chain of Ho et al. 2020, 2006.11239."""

    @abstractmethod
    def betas(self) -> Tensor:
        """(N,) float64 on the CPU, each in (0, 1): the share of noise that each step mixes in."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        # sqrt(1 - alpha^2), by expm1 since 1 - alpha^2 cancels where t is small; abs, not minus, gives no -0 at t = 0
        return torch.sqrt(torch.expm1(2 * self._log_alpha(t)).abs())

    def network_time(self, t: Tensor) -> Tensor:
        """index / 1000, in [0, (N - 1) / 1000]: a network that multiplies its time by 1000 sees the index.

        Before index 0, where no published network was trained, it stays 0.
        """
        index = at_least_float32(t) * self._num_steps - 1
        return index.clamp(min=0) / 1000

    @property
    def _num_steps(self) -> int:
        return len(_log_alphas(self, torch.float64, torch.device("cpu"))) - 1

    def _log_alpha(self, t: Tensor) -> Tensor:
        t = at_least_float32(t)
        table = _log_alphas(self, t.dtype, t.device)
        position = t * (len(table) - 1)
        left = position.detach().long().clamp(0, len(table) - 2)
        at_left, at_right = table[left], table[left + 1]
        return at_left + (position - left) * (at_right - at_left)


@lru_cache(maxsize=32)
def _log_alphas(schedule: Tabulated, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(N + 1,) log(alpha) at t = 0, 1/N ... 1; kept per device, so that no step copies the table there."""
    steps = 0.5 * torch.cumsum(torch.log1p(-schedule.betas()), 0)
    return torch.cat([steps.new_zeros(1), steps]).to(device, dtype)


@dataclass(frozen=True, kw_only=True)
class DDPMLinear(Tabulated):
    """Betas rising linearly (Ho et al. 2020, 2006.11239, section 4): DDPM, ADM, DiT and many pixel-space models.

    ``VPLinear`` is its continuous form.
    """

    beta_start: float = 1e-4
    beta_end: float = 0.02
    num_train_steps: int = 1000

    def __post_init__(self) -> None:
        _check(self.beta_start, self.beta_end, self.num_train_steps)

    def betas(self) -> Tensor:
        return torch.linspace(self.beta_start, self.beta_end, self.num_train_steps, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class ScaledLinear(Tabulated):
    """The square roots of the betas rising linearly: Stable Diffusion 1, 2 and XL (Rombach et al. 2022, 2112.10752).

    At t = 1 alpha is 0.068: a good part of the picture's mean is left, which is what ``ZeroTerminalSNR`` mends.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    num_train_steps: int = 1000

    def __post_init__(self) -> None:
        _check(self.beta_start, self.beta_end, self.num_train_steps)

    def betas(self) -> Tensor:
        ends = self.beta_start**0.5, self.beta_end**0.5
        return torch.linspace(*ends, self.num_train_steps, dtype=torch.float64).square()


def _check(beta_start: float, beta_end: float, num_train_steps: int) -> None:
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(
            f"0 < beta_start <= beta_end < 1 must hold, got beta_start={beta_start}, beta_end={beta_end}"
        )
    if num_train_steps < 2:
        raise ValueError(f"num_train_steps={num_train_steps} must be at least 2: it is a table's length")
