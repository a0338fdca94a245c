"""Time grids: where between noise and data a sampler stops.

A grid falls from the largest time of ``t_range`` to exactly 0. Samplers ask the network at every time but the last, so
the network is never asked at t = 0, where x_t is the picture itself, nor at a time below t_range[0], where it was not
trained. More grids that are stated in the noise level are in ``noise_grids``, those of published models in
``published_grids``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ldm.diffusion.schedules import log_snr, t_at_log_snr
from ldm.interfaces import NoiseSchedule


class Grid(Protocol):
    def __call__(self, schedule: NoiseSchedule, num_steps: int, *, t_range: tuple[float, float]) -> Tensor:
        """The times of ``num_steps`` steps, from t_range[1] down to 0: (num_steps + 1,) float32 on the CPU.

        Raises:
            ValueError: ``num_steps`` is less than 1, or so large that neighbouring times fall together.
        """
        ...


@dataclass(frozen=True)
class Uniform:
    """Equal steps in t, pure noise at t_range[1] included ("trailing", Lin et al. 2023, 2305.08891)."""

    def __call__(self, schedule: NoiseSchedule, num_steps: int, *, t_range: tuple[float, float]) -> Tensor:
        return finished(equal_times(num_steps, t_range))


@dataclass(frozen=True)
class Quadratic:
    """Steps that shrink in proportion to the square root of t (Song et al. 2020, 2010.02502, appendix D.2).

    Most of them near the data; DDIM's authors used it for small pictures.
    """

    def __call__(self, schedule: NoiseSchedule, num_steps: int, *, t_range: tuple[float, float]) -> Tensor:
        return _curved(_ramp(num_steps) ** 2, t_range)


@dataclass(frozen=True, kw_only=True)
class Beta:
    """Quantiles of a beta distribution (Lee et al. 2024, 2407.12173): many steps near both ends, few between.

    Args:
        alpha: Below 1 crowds times at 0, the data. The paper's 0.6 for both.
        beta: Below 1 crowds times at 1, the noise.
    """

    alpha: float = 0.6
    beta: float = 0.6

    def __post_init__(self) -> None:
        if not (self.alpha > 0 and self.beta > 0):
            raise ValueError(f"Beta needs alpha > 0 and beta > 0, got alpha={self.alpha}, beta={self.beta}")

    def __call__(self, schedule: NoiseSchedule, num_steps: int, *, t_range: tuple[float, float]) -> Tensor:
        from scipy.special import betaincinv  # a large import, for this grid only

        quantiles = betaincinv(self.alpha, self.beta, _ramp(num_steps).numpy())
        return _curved(torch.from_numpy(quantiles), t_range)


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
        check_num_steps(num_steps)
        cleanest, noisiest = log_snr(schedule, torch.tensor(t_range, dtype=torch.float64)).tolist()
        first, last = max(self.log_snr_min, noisiest), min(self.log_snr_max, cleanest)
        if not first < last:
            raise ValueError(
                f"t_range={t_range} of {schedule} has log-SNR {noisiest:.3g} ... {cleanest:.3g}, "
                f"which leaves nothing between log_snr_min={self.log_snr_min} and log_snr_max={self.log_snr_max}"
            )
        levels = torch.linspace(first, last, num_steps, dtype=torch.float64)
        return at_log_snr(schedule, levels, t_range)


@dataclass(frozen=True, kw_only=True)
class Explicit:
    """These times and no others.

    Args:
        times: At which the network is asked, falling, within t_range; the 0 at the end is added. The first need not be
            t_range[1], but pictures start there from pure noise.
    """

    times: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(float(t) for t in self.times))  # a config hands over a list
        if not self.times or any(
            t <= after for t, after in zip(self.times, [*self.times[1:], 0.0], strict=True)
        ):
            raise ValueError(f"Explicit needs times that fall and stay above 0, got times={list(self.times)}")

    def __call__(self, schedule: NoiseSchedule, num_steps: int, *, t_range: tuple[float, float]) -> Tensor:
        check_num_steps(num_steps)
        if num_steps != len(self.times):
            raise ValueError(
                f"Explicit has {len(self.times)} times: it needs num_steps={len(self.times)}, got num_steps={num_steps}"
            )
        if self.times[0] > t_range[1] or self.times[-1] < t_range[0]:
            raise ValueError(f"Explicit times={list(self.times)} must lie within t_range={t_range}")
        return finished(torch.tensor(self.times, dtype=torch.float64))


def check_num_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")


def equal_times(num_steps: int, t_range: tuple[float, float]) -> Tensor:
    """Equal steps from t_range[1] to 0, the 0 left out, (num_steps,); to t_range[0] where they would go below it."""
    check_num_steps(num_steps)
    t_min, t_max = t_range
    if t_max < num_steps * t_min:
        return torch.linspace(t_max, t_min, num_steps, dtype=torch.float64)
    return torch.linspace(t_max, 0.0, num_steps + 1, dtype=torch.float64)[:-1]


def finished(asked: Tensor) -> Tensor:
    """The times at which the network is asked, (num_steps,), and 0. Rounds once; refuses times that fall together."""
    times = torch.cat([asked, asked.new_zeros(1)]).float()
    numbers = times.tolist()  # so few are compared faster in Python than by kernels
    if not all(now > then for now, then in pairwise(numbers)):
        raise ValueError(f"{len(asked)} steps are too many: neighbouring times are equal in float32")
    return times


def at_log_snr(schedule: NoiseSchedule, levels: Tensor, t_range: tuple[float, float]) -> Tensor:
    """The grid with these log-SNR, (num_steps,) rising; its first time is moved out to t_range[1]."""
    asked = t_at_log_snr(schedule, levels).clamp(*t_range)
    asked[0] = t_range[1]
    return finished(asked)


def _ramp(num_steps: int) -> Tensor:
    """1 falling to 1 / num_steps in equal steps, (num_steps,); the 0 that follows is left out."""
    check_num_steps(num_steps)
    return torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)[:-1]


def _curved(curve: Tensor, t_range: tuple[float, float]) -> Tensor:
    """curve (num_steps,) falling from 1 towards 0 -> the grid of that form between t_range[1] and t_range[0]."""
    t_min, t_max = t_range
    asked = t_min + (t_max - t_min) * curve
    asked[0] = t_max
    return finished(asked)
