"""Time grids: where between noise and data a sampler stops.

A grid falls from the largest time of ``t_range`` to exactly 0. Samplers ask the network at every time but the
last, so the network is never asked at t = 0, where x_t is the picture itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ldm.diffusion.schedules import log_snr, t_at_log_snr
from ldm.interfaces import NoiseSchedule


class Grid(Protocol):
    def __call__(self, schedule: NoiseSchedule, num_steps: int, *, t_range: tuple[float, float]) -> Tensor:
        """The times of ``num_steps`` steps, from t_range[1] down to 0: (num_steps + 1,) float32 on the CPU."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Equal steps in t, pure noise at t_range[1] included ("trailing", Lin et al. 2023, 2305.08891)."""

    def __call__(self, schedule: NoiseSchedule, num_steps: int, *, t_range: tuple[float, float]) -> Tensor:
        _check_num_steps(num_steps)
        times = torch.linspace(t_range[1], 0.0, num_steps + 1, dtype=torch.float64)
        return _in_float32(times, num_steps)


@dataclass(frozen=True, kw_only=True)
class LogSNR:
    """Equal steps in log-SNR (Lu et al. 2022, 2206.00927, section 3.3), most of them near the data.

    The log-SNR is infinite at the ends of most schedules, so the steps are laid between two bounds. The first
    time is then moved out to t_range[1], where sampling starts, and a last step is added that ends at 0.

    Args:
        log_snr_min: Where the equal steps begin, or at t_range[1] if that is cleaner.
        log_snr_max: Where they end, or at t_range[0] if that is noisier; 9.2 is a noise of 1 % of the data.
    """

    log_snr_min: float = -8.0
    log_snr_max: float = 9.2

    def __post_init__(self) -> None:
        if not self.log_snr_min < self.log_snr_max:
            raise ValueError(
                f"log_snr_min={self.log_snr_min} must lie below log_snr_max={self.log_snr_max}: "
                f"steps go from noise (low) to data (high)"
            )

    def __call__(self, schedule: NoiseSchedule, num_steps: int, *, t_range: tuple[float, float]) -> Tensor:
        _check_num_steps(num_steps)
        cleanest, noisiest = log_snr(schedule, torch.tensor(t_range, dtype=torch.float64)).tolist()
        first, last = max(self.log_snr_min, noisiest), min(self.log_snr_max, cleanest)
        if not first < last:
            raise ValueError(
                f"t_range={t_range} of {schedule} has log-SNR {noisiest:.3g} ... {cleanest:.3g}, "
                f"which leaves nothing between log_snr_min={self.log_snr_min} and log_snr_max={self.log_snr_max}"
            )
        asked = t_at_log_snr(schedule, torch.linspace(first, last, num_steps, dtype=torch.float64))
        asked[0] = t_range[1]
        return _in_float32(torch.cat([asked, asked.new_zeros(1)]), num_steps)


def _check_num_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")


def _in_float32(times: Tensor, num_steps: int) -> Tensor:
    """Rounds once, at the end; refuses grids so fine that neighbouring times fall together."""
    times = times.float()
    if not bool((times.diff() < 0).all()):
        raise ValueError(f"{num_steps} steps are too many: neighbouring times are equal in float32")
    return times
