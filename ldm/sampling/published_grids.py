"""The time grids of published models with a table of steps, as Lin et al. 2023, 2305.08891, table 2, name them.

Such a model knows the steps i = 0 ... num_train_steps - 1, and its step i is our time (i + 1) / num_train_steps. These
grids round to its steps, so a network that never saw a time between them is asked for none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.interfaces import NoiseSchedule
from ldm.sampling.grids import check_num_steps, equal_times, finished


@dataclass(frozen=True, kw_only=True)
class Trailing:
    """Equal steps that begin at the last, noisiest one: ``Uniform``, rounded to the table. The one to prefer.

    Args:
        num_train_steps: The length of the table.
    """

    num_train_steps: int = 1000

    def __call__(self, schedule: NoiseSchedule, num_steps: int, *, t_range: tuple[float, float]) -> Tensor:
        first, last = (t * self.num_train_steps for t in t_range)
        steps = equal_times(num_steps, (first, last)).round() - 1
        return _at(steps, self.num_train_steps, t_range)


@dataclass(frozen=True, kw_only=True)
class Linspace:
    """Equal steps from the last of the table to its first, both included, rounded. One step alone is the last.

    Args:
        num_train_steps: The length of the table.
    """

    num_train_steps: int = 1000

    def __call__(self, schedule: NoiseSchedule, num_steps: int, *, t_range: tuple[float, float]) -> Tensor:
        check_num_steps(num_steps)
        first, last = (max(t * self.num_train_steps - 1, 0) for t in t_range)
        steps = torch.linspace(last, first, num_steps, dtype=torch.float64).round()
        return _at(steps, self.num_train_steps, t_range)


@dataclass(frozen=True, kw_only=True)
class Leading:
    """Multiples of num_train_steps // num_steps, plus an offset: how Stable Diffusion 1 and 2 were published.

    Unlike the other grids it does not begin at t_range[1] but almost a step later, at t = 0.982 with 50 steps, and
    there from pure noise: the flaw that 2305.08891 describes. It is here to make published pictures again.

    Args:
        num_train_steps: The length of the table.
        steps_offset: Added to each step; Stable Diffusion has 1.
    """

    num_train_steps: int = 1000
    steps_offset: int = 1

    def __call__(self, schedule: NoiseSchedule, num_steps: int, *, t_range: tuple[float, float]) -> Tensor:
        check_num_steps(num_steps)
        stride = self.num_train_steps // num_steps
        steps = torch.arange(num_steps - 1, -1, -1, dtype=torch.float64) * stride + self.steps_offset
        return _at(steps, self.num_train_steps, t_range)


def _at(steps: Tensor, num_train_steps: int, t_range: tuple[float, float]) -> Tensor:
    """steps (num_steps,) of the table, falling -> the grid; a time outside t_range is moved to its end."""
    return finished(((steps + 1) / num_train_steps).clamp(*t_range))
