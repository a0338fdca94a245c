"""The walk from noise to data: what all samplers share.

With ``u = alpha / sigma``, the probability-flow ODE (Song et al. 2020, 2011.13456) of any schedule reads

    d(x / sigma) = x0(x, t) du

and a step from t to the smaller t1 is the integral of x0 over it (the data-prediction form of Lu et al. 2022,
2211.01095), here with the log-SNR's half, ``lam = log(alpha / sigma)``, and ``h = lam(t1) - lam(t)``:

    x1 = sigma1 / sigma * x + alpha1 * integral over lam of exp(lam - lam(t1)) * x0

Samplers differ in how they guess x0 along the way, and in how much of the noise they draw anew. Almost all of them come
out as a ``Row``: a linear combination of x, of the x0 seen so far, and of fresh noise.

**The ends.** ``ratio = exp(-h)`` is finite everywhere, and every step is written in it. Where a step begins with
alpha = 0 (pure noise) or ends with sigma = 0 (data), h is infinite and the ratio 0: the step is
``x1 = sigma1 / sigma * x + alpha1 * x0`` in the first case and ``x1 = alpha1 * x0`` in the second, the limit of every
formula of first order. Guesses of higher order are polynomials in lam, which have no limit at an infinite step:
a step that ends at sigma = 0 is of first order, and a point at alpha = 0 drops out of the later polynomials, as its
weight goes to 0. Neither costs a method of second order its order, see docs/samplers.md.

Coefficients are computed once per run, in float64 Python numbers: nothing in the loop waits for a device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.interfaces import Denoiser, NoiseSchedule, NoiseSource, StepCallback


class Step(NamedTuple):
    """From time t to the smaller time t1."""

    number: int
    t: float
    t1: float
    alpha: float
    alpha1: float
    sigma: float
    sigma1: float

    @property
    def ratio(self) -> float:
        """exp(-h), in [0, 1): the part of the noise-to-signal ratio that the step leaves."""
        return self.alpha * self.sigma1 / (self.alpha1 * self.sigma)

    @property
    def h(self) -> float:
        """How far the step goes in lam = log(alpha / sigma); infinite from alpha = 0 and to sigma = 0."""
        return -math.log(self.ratio) if self.ratio > 0 else math.inf


class Row(NamedTuple):
    """The weights of a step that is a linear combination of x, of the last x0 and of fresh noise."""

    x: float
    x0: tuple[float, ...]  # of the last x0, the newest first
    noise: float = 0.0


def steps_along(schedule: NoiseSchedule, times: Tensor) -> tuple[Step, ...]:
    """times (num_steps + 1,) falling -> the steps between them.

    Raises:
        ValueError: Fewer than two times, or times that do not fall within [0, 1].
    """
    return _steps_along(schedule, _numbers(times))


def _numbers(times: Tensor) -> tuple[float, ...]:
    t = times.detach().to("cpu", torch.float64).tolist() if times.ndim == 1 else []
    if len(t) < 2 or t[0] > 1 or t[-1] < 0 or not all(now > then for now, then in pairwise(t)):
        raise ValueError(f"times must fall within [0, 1], at least two of them, got {times.tolist()}")
    return tuple(t)


def _steps_along(schedule: NoiseSchedule, t: tuple[float, ...]) -> tuple[Step, ...]:
    column = torch.tensor(t, dtype=torch.float64)
    places = zip(t, schedule.alpha(column).tolist(), schedule.sigma(column).tolist(), strict=True)
    return tuple(
        Step(number, t0, t1, alpha, alpha1, sigma, sigma1)
        for number, ((t0, alpha, sigma), (t1, alpha1, sigma1)) in enumerate(pairwise(places))
    )


def combine(row: Row, x: Tensor, x0: Sequence[Tensor], noise: NoiseSource, step: int) -> Tensor:
    """The linear combination with the weights of ``row``, in as few kernels as there are: the step of every sampler.

    Args:
        row: The weights.
        x: (B, C, H, W).
        x0: The last ones, the newest first, at least as many as ``row`` has weights.
        noise: Asked only if ``row`` has a weight for it.
        step: The number of the step, for the noise.
    """
    newest, weight = x0[0], row.x0[0]
    if len(row.x0) == 1 and abs(row.x + weight - 1) < 1e-12 and x.dtype == newest.dtype:
        total = torch.lerp(x, newest, weight)  # a step of first order where alpha + sigma is 1, or alpha is
    elif row.x == 0:
        total = newest * weight
    else:
        total = x * row.x
        for weight, guess in zip(row.x0, x0, strict=False):
            if weight != 0:
                total = total.add(guess, alpha=weight)
    return total if row.noise == 0 else total.add(noise(step), alpha=row.noise)


class LinearSampler(ABC):
    """A sampler with one network call a step, each step a ``Row``."""

    @abstractmethod
    def rows(self, steps: Sequence[Step]) -> list[Row]:
        """The coefficients of every step of a walk."""

    def __call__(
        self,
        denoise: Denoiser,
        schedule: NoiseSchedule,
        x: Tensor,
        times: Tensor,
        *,
        noise: NoiseSource,
        on_step: StepCallback | None = None,
    ) -> Tensor:
        """x (B, C, H, W) at times[0], times (num_steps + 1,) falling -> x at times[-1]."""
        plan = _planned(self, schedule, _numbers(times))  # type: ignore[arg-type]
        seen: deque[Tensor] = deque(maxlen=max(len(row.x0) for _, row in plan))  # x0, the newest first
        for step, row in plan:
            now = denoise(x, step.t)
            if on_step is not None:
                on_step(step.number, x, now)
            seen.appendleft(now.x0)
            x = combine(row, x, seen, noise, step.number)
        return x


@lru_cache(maxsize=64)  # the next batch walks the same way; samplers and schedules are frozen dataclasses
def _planned(sampler: LinearSampler, schedule: NoiseSchedule, t: tuple[float, ...]) -> list[tuple[Step, Row]]:
    steps = _steps_along(schedule, t)
    return list(zip(steps, sampler.rows(steps), strict=True))
