"""Time grids stated in the noise level, sigma / alpha: the same levels for every schedule, whatever its t.

The level is infinite or 0 at the ends of most schedules, so the steps are laid between two bounds. The first time is
then moved out to t_range[1], where sampling starts, and a last step is added that ends at 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.schedules import log_snr
from ldm.interfaces import NoiseSchedule
from ldm.sampling.grids import at_log_snr, check_num_steps

NOISIEST, CLEANEST = (
    80.0,
    0.002,
)  # of Karras et al. 2022, table 1; where t_range ends at an infinite or no noise level


@dataclass(frozen=True, kw_only=True)
class Karras:
    """Equal steps in (sigma / alpha)^(1 / rho) (Karras et al. 2022, 2206.00364, eq. 5).

    Args:
        rho: 1 is equal steps in the noise level; the larger, the more of them near the data.
        sigma_min: sigma / alpha at the last time before 0. None: that of t_range[0], or 0.002 where that is 0.
        sigma_max: sigma / alpha at the first time. None: that of t_range[1], or 80 where that is infinite.
    """

    rho: float = 7.0
    sigma_min: float | None = None
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, schedule: NoiseSchedule, num_steps: int, *, t_range: tuple[float, float]) -> Tensor:
        low, high = _bounds(self, schedule, num_steps, t_range)
        ramp = torch.linspace(0.0, 1.0, num_steps, dtype=torch.float64)
        start, end = high ** (1 / self.rho), low ** (1 / self.rho)
        return at_log_snr(schedule, -2 * self.rho * torch.log(start + ramp * (end - start)), t_range)


@dataclass(frozen=True, kw_only=True)
class Polyexponential:
    """log(sigma / alpha) falls as the ``rho``-th power of what is left of the walk.

    Args:
        rho: 1 is equal steps in log(sigma / alpha), known as exponential; above 1 crowds times near the data, below 1
            near the noise.
        sigma_min: As in ``Karras``.
        sigma_max: As in ``Karras``.
    """

    rho: float = 1.0
    sigma_min: float | None = None
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, schedule: NoiseSchedule, num_steps: int, *, t_range: tuple[float, float]) -> Tensor:
        low, high = _bounds(self, schedule, num_steps, t_range)
        left = torch.linspace(1.0, 0.0, num_steps, dtype=torch.float64) ** self.rho
        return at_log_snr(schedule, -2 * (math.log(low) + left * math.log(high / low)), t_range)


def _check(grid: Karras | Polyexponential) -> None:
    if not grid.rho > 0:
        raise ValueError(f"{type(grid).__name__} needs rho > 0, got rho={grid.rho}")
    low, high = grid.sigma_min, grid.sigma_max
    if not 0 < (CLEANEST if low is None else low) < (math.inf if high is None else high):
        raise ValueError(
            f"{type(grid).__name__} needs 0 < sigma_min < sigma_max, got sigma_min={low}, sigma_max={high}"
        )


def _bounds(
    grid: Karras | Polyexponential, schedule: NoiseSchedule, num_steps: int, t_range: tuple[float, float]
) -> tuple[float, float]:
    """(sigma_min, sigma_max) of the grid as sigma / alpha, moved into t_range."""
    check_num_steps(num_steps)
    cleanest, noisiest = torch.exp(
        -0.5 * log_snr(schedule, torch.tensor(t_range, dtype=torch.float64))
    ).tolist()
    low = grid.sigma_min or cleanest or CLEANEST
    high = grid.sigma_max or (noisiest if math.isfinite(noisiest) else NOISIEST)
    low, high = max(low, cleanest), min(high, noisiest)
    if not 0 < low < high:
        raise ValueError(
            f"t_range={t_range} of {schedule} has sigma / alpha from {cleanest:.3g} to {noisiest:.3g}, which leaves "
            f"nothing between sigma_min={grid.sigma_min} and sigma_max={grid.sigma_max} of {type(grid).__name__}"
        )
    return low, high
