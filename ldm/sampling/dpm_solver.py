"""DPM-Solver++ (Lu et al. 2022, 2211.01095): x0 as a polynomial in lam = log(alpha / sigma)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.schedules import log_snr
from ldm.interfaces import Denoiser, NoiseSchedule, NoiseSource, StepCallback
from ldm.sampling.exponential import order_of, predictor
from ldm.sampling.samplers import first_order
from ldm.sampling.walk import LinearSampler, Row, Step, combine, steps_along

_PLACES = torch.linspace(0, 1, 33, dtype=torch.float64)


@dataclass(frozen=True)
class DPMpp2M(LinearSampler):
    """DPM-Solver++(2M), their algorithm 2: second order, one network call a step.

    x0 goes on along the line through its last two values. With ``grid=karras`` it is what many programs call "DPM++ 2M
    Karras".
    """

    def rows(self, steps: Sequence[Step]) -> list[Row]:
        return [predictor(steps, i, 2) for i in range(len(steps))]


@dataclass(frozen=True)
class DPMpp3M(LinearSampler):
    """The multistep solver of third order: the exact integral of the parabola through the last three x0.

    One network call a step. The same as UniP-3 (Zhao et al. 2023, 2302.04867). Not the same as what is known as
    "3M" from the authors' code and its descendants: they take half the term of second degree, which leaves order
    two (tests/sampling/test_against_diffusers_solvers.py shows both).
    """

    def rows(self, steps: Sequence[Step]) -> list[Row]:
        return [predictor(steps, i, 3) for i in range(len(steps))]


@dataclass(frozen=True, kw_only=True)
class DPMpp2MSDE(LinearSampler):
    """SDE-DPM-Solver++(2M): as ``DPMpp2M``, with fresh noise in every step.

    It solves the reverse SDE with ``eta`` times its noise: x0 is integrated against exp((1 + eta) lam).

    Args:
        eta: 0 is ``DPMpp2M``; 1 is the published sampler, of first order the same as DDPM.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not self.eta >= 0.0:
            raise ValueError(f"DPMpp2MSDE needs eta >= 0, got eta={self.eta}")

    def rows(self, steps: Sequence[Step]) -> list[Row]:
        return [self._row(steps, i) for i in range(len(steps))]

    def _row(self, steps: Sequence[Step], i: int) -> Row:
        step = steps[i]
        row = first_order(step, keep=step.ratio**self.eta)
        if order_of(steps, i, 2) == 1:
            return row
        slope = 0.5 * row.x0[0] * step.h / steps[i - 1].h
        return row._replace(x0=(row.x0[0] + slope, -slope))


@dataclass(frozen=True, kw_only=True)
class DPMpp2S:
    """DPM-Solver++(2S), their algorithm 1: second order, two network calls a step and no memory between steps.

    The second call is at a time within the step. A step from alpha = 0 or to sigma = 0 has no such time, as h is
    infinite, and is of first order with one call.

    Args:
        middle: Where in the step the second call is, as a part of h; 1/2 is the midpoint.
    """

    middle: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.middle < 1.0:
            raise ValueError(f"DPMpp2S needs middle between 0 and 1, got middle={self.middle}")

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
        steps = steps_along(schedule, times)
        halves = self._halves(schedule, steps, times.dtype)
        for step in steps:
            now = denoise(x, step.t)
            if on_step is not None:
                on_step(step.number, x, now)
            row, guesses = first_order(step), [now.x0]
            if step.number in halves:
                half = halves[step.number]
                x_half = combine(first_order(half), x, [now.x0], noise, step.number)
                guesses = [denoise(x_half, half.t1).x0, now.x0]
                share = 0.5 * step.h / half.h  # 1 / (2 r) of the paper, r as the time was rounded
                row = row._replace(x0=(share * row.x0[0], (1 - share) * row.x0[0]))
            x = combine(row, x, guesses, noise, step.number)
        return x

    def _halves(self, schedule: NoiseSchedule, steps: Sequence[Step], dtype: torch.dtype) -> dict[int, Step]:
        """Number of a step of finite length -> the part of it that ends at the second call.

        That time is found by cutting the step into 32 parts and going on with the right one, four times over: to 1e-6
        of the step, which is more than enough, as the weights are those of the time it comes to be.
        """
        finite = [step for step in steps if math.isfinite(step.h)]
        rows = [(s.t, s.t1, 2 * (math.log(s.alpha / s.sigma) + self.middle * s.h)) for s in finite]
        columns = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3).T.contiguous()
        start, end, wanted = columns[..., None]  # (n, 1) each
        for _ in range(4):
            t = torch.lerp(start, end, _PLACES)  # (n, 33)
            after = torch.searchsorted(log_snr(schedule, t), wanted).clamp(1, len(_PLACES) - 1)
            start, end = t.gather(1, after - 1), t.gather(1, after)
        t = torch.lerp(start, end, 0.5).flatten().to(dtype).double()
        places = zip(t.tolist(), schedule.alpha(t).tolist(), schedule.sigma(t).tolist(), strict=True)
        return {
            step.number: step._replace(t1=t1, alpha1=alpha1, sigma1=sigma1)
            for step, (t1, alpha1, sigma1) in zip(finite, places, strict=True)
            if step.t1 < t1 < step.t  # else the times are neighbours, and there is none between
        }
