"""Schedules rescaled to end without a trace of the picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ldm.diffusion.schedules import Schedule, at_least_float32
from ldm.interfaces import NoiseSchedule


@dataclass(frozen=True, kw_only=True)
class ZeroTerminalSNR(Schedule):
    """``schedule`` with alpha moved down to 0 at t = 1 and t = 0 left alone (Lin et al. 2023, 2305.08891, algorithm 1).

    A model that has always seen a trace of the picture in its noisiest input expects one in pure noise, and paints
    everything in middle brightness. Epsilon says nothing of x0 at t = 1: use V, Flow, X0 or EDM.

    Where this deviates: the paper leaves index 0 of a table alone, at t = 1/1000; here it is t = 0, since at continuous
    times a schedule begins with clean data. On Stable Diffusion's table alpha differs by a factor of 0.99997.

    Args:
        schedule: Any variance-preserving one, alpha^2 + sigma^2 = 1.
    """

    schedule: NoiseSchedule

    def __post_init__(self) -> None:
        t = torch.linspace(0, 1, 9, dtype=torch.float64)
        schedule = self.schedule.for_latents((4, 32, 32))  # a shift moves times only: any shape will do
        variance = schedule.alpha(t).square() + schedule.sigma(t).square()
        if not torch.allclose(variance, torch.ones_like(t), rtol=0, atol=1e-6):
            raise ValueError(
                f"ZeroTerminalSNR is for variance-preserving schedules; {type(self.schedule).__name__} has "
                f"alpha^2 + sigma^2 = {float(variance[4]):.3g} at t = 0.5"
            )

    def alpha(self, t: Tensor) -> Tensor:
        t = at_least_float32(t)
        alpha = (self.schedule.alpha(t) - self._last) / (1 - self._last)
        # in float32 the difference may miss 0 by a rounding, to either side
        return torch.where(t < 1, alpha.clamp(min=0), 0.0)

    def sigma(self, t: Tensor) -> Tensor:
        # sqrt(1 - alpha'^2), written as a multiple of the old sigma, since 1 - alpha'^2 cancels where t is small:
        # 1 - alpha'^2 = sigma^2 + (alpha - alpha') (alpha + alpha') and alpha - alpha' = last (1 - alpha) / (1 - last)
        old, new = self.schedule.alpha(t), self.alpha(t)
        return self.schedule.sigma(t) * torch.sqrt(
            1 + self._last / (1 - self._last) * (old + new) / (1 + old)
        )

    def network_time(self, t: Tensor) -> Tensor:
        return self.schedule.network_time(t)

    def for_latents(self, shape: tuple[int, int, int]) -> NoiseSchedule:
        schedule = self.schedule.for_latents(shape)
        return self if schedule is self.schedule else replace(self, schedule=schedule)

    @cached_property
    def _last(self) -> float:
        """The old alpha(1)."""
        return float(self.schedule.alpha(torch.ones((), dtype=torch.float64)))
