"""Schedules moved towards noise, for latents with more pixels or channels.

Neighbouring pixels of a large picture say the same thing, so the same sigma hides less of it. ``Shifted`` moves the
times of any schedule; how far is said by a shift object, from a number or from the latents' shape. The shift is part of
the schedule, so training and sampling share it and it is applied once: samplers' grids have no shift of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from ldm.diffusion.schedules import Schedule, at_least_float32
from ldm.interfaces import NoiseSchedule


class Shift(Protocol):
    """How far the times are moved."""

    def __call__(self, shape: tuple[int, int, int]) -> float:
        """The factor for latents (C, H, W): above 0, above 1 towards noise."""
        ...


@dataclass(frozen=True, kw_only=True)
class FixedShift:
    """The same factor for every shape; 3 in Stable Diffusion 3 at 1024 x 1024 pixels (2403.03206, section 5.3.2)."""

    factor: float

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf:
            raise ValueError(f"FixedShift needs a finite factor > 0, got factor={self.factor}")

    def __call__(self, shape: tuple[int, int, int]) -> float:
        return self.factor


@dataclass(frozen=True, kw_only=True)
class TokenShift:
    """exp(mu), with mu on a straight line over the number of the transformer's tokens, as Flux.1 samples.

    By default mu is 0.5 at 256 tokens (256 x 256 pixels) and 1.15 at 4096 (1024 x 1024). The line goes on beyond both.

    Args:
        base_tokens: Where the line begins ...
        base_shift: ... and mu there.
        max_tokens: Where it ends ...
        max_shift: ... and mu there.
        patch_size: Side of the square of latents that makes one token.
    """

    base_tokens: int = 256
    base_shift: float = 0.5
    max_tokens: int = 4096
    max_shift: float = 1.15
    patch_size: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.base_tokens < self.max_tokens:
            raise ValueError(
                f"0 < base_tokens < max_tokens must hold, got base_tokens={self.base_tokens}, "
                f"max_tokens={self.max_tokens}"
            )
        if self.patch_size < 1:
            raise ValueError(f"TokenShift needs patch_size >= 1, got patch_size={self.patch_size}")

    def __call__(self, shape: tuple[int, int, int]) -> float:
        _, height, width = shape
        num_tokens = height * width / self.patch_size**2
        along = (num_tokens - self.base_tokens) / (self.max_tokens - self.base_tokens)
        return math.exp(self.base_shift + (self.max_shift - self.base_shift) * along)


@dataclass(frozen=True, kw_only=True)
class DimensionShift:
    """sqrt(C*H*W / base_dim): for latents with many channels too (Zheng et al. 2025, 2510.11690).

    Args:
        base_dim: The number of values that needs no shift; 4096 as in the paper: 32 x 32 latents of 4 channels.
    """

    base_dim: int = 4096

    def __post_init__(self) -> None:
        if self.base_dim < 1:
            raise ValueError(f"DimensionShift needs base_dim >= 1, got base_dim={self.base_dim}")

    def __call__(self, shape: tuple[int, int, int]) -> float:
        return math.sqrt(math.prod(shape) / self.base_dim)


@dataclass(frozen=True, kw_only=True)
class Shifted(Schedule):
    """``schedule`` at the time s t / (1 + (s - 1) t) (Esser et al. 2024, 2403.03206, eq. 23).

    On the rectified flow this divides the SNR by s^2 at every t. The network is told the moved time, as in the models
    that were trained so.

    Args:
        schedule: Any schedule that is not itself shifted.
        shift: Where s comes from. Unless it is a ``FixedShift``, ask ``for_latents`` for the schedule first.
    """

    schedule: NoiseSchedule
    shift: Shift

    def __post_init__(self) -> None:
        if isinstance(self.schedule, Shifted):
            raise ValueError(
                "Shifted is given a schedule that is already Shifted; a shift is applied once: multiply the factors"
            )

    def alpha(self, t: Tensor) -> Tensor:
        return self.schedule.alpha(self._moved(t))

    def sigma(self, t: Tensor) -> Tensor:
        return self.schedule.sigma(self._moved(t))

    def network_time(self, t: Tensor) -> Tensor:
        """What ``schedule`` tells the network at the moved time."""
        return self.schedule.network_time(self._moved(t))

    def for_latents(self, shape: tuple[int, int, int]) -> NoiseSchedule:
        """The schedule for latents (C, H, W), its shift now a ``FixedShift``."""
        schedule = self.schedule.for_latents(shape)
        if schedule is self.schedule and isinstance(self.shift, FixedShift):
            return self
        return replace(self, schedule=schedule, shift=FixedShift(factor=self.shift(shape)))

    def _moved(self, t: Tensor) -> Tensor:
        if not isinstance(self.shift, FixedShift):
            raise ValueError(
                f"{type(self.shift).__name__} depends on the latents' shape: ask for_latents((C, H, W)) first, "
                f"of the schedule or of the Diffusion that has it"
            )
        t = at_least_float32(t)
        # eq. 23 divided by s: exactly 1 at t = 1, and by rounding never more
        return t / (t + (1 - t) / self.shift.factor)
