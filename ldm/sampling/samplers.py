"""Samplers: pure functions that walk x from noise to data along a denoiser.

The probability-flow ODE (Song et al. 2020, 2011.13456) reads, in the coordinates alpha and sigma::

    dx = x0(x, t) dalpha + eps(x, t) dsigma

with x0 and eps as the denoiser predicts them. Integrating against dalpha and dsigma themselves, rather than
against dt, needs no derivative of the schedule, so the same few lines serve every schedule and parameterization,
also where sigma has a vertical tangent (``VPLinear`` at t = 0).

Times are read once into Python floats, alpha and sigma come from float64. ``on_step`` sees the step's number, x and
the prediction, before the step is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.interfaces import Denoiser, NoiseSchedule, NoiseSource, Prediction, StepCallback


class Step(NamedTuple):
    """From time t to the smaller time t1."""

    number: int
    t: float
    t1: float
    alpha: float
    alpha1: float
    sigma: float
    sigma1: float


def steps_along(schedule: NoiseSchedule, times: Tensor) -> Iterator[Step]:
    """times (num_steps + 1,) falling -> the steps between them.

    Raises:
        ValueError: Fewer than two times, or times that do not fall within [0, 1].
    """
    t = times.detach().to("cpu", torch.float64)
    if t.ndim != 1 or len(t) < 2 or not bool((t.diff() < 0).all()) or t[0] > 1 or t[-1] < 0:
        raise ValueError(f"times must fall within [0, 1], at least two of them, got {t.tolist()}")
    alpha, sigma = schedule.alpha(t).tolist(), schedule.sigma(t).tolist()
    for i in range(len(t) - 1):
        yield Step(i, float(t[i]), float(t[i + 1]), alpha[i], alpha[i + 1], sigma[i], sigma[i + 1])


def ask(denoise: Denoiser, x: Tensor, t: float) -> Prediction:
    """The prediction for x (B, C, H, W), all rows at the same time."""
    return denoise(x, torch.full((len(x),), t, dtype=torch.float32, device=x.device))


@dataclass(frozen=True)
class Euler:
    """First order, one network call a step: x0 and eps are held over the step.

    This is DDIM with eta = 0 (Song et al. 2020, 2010.02502); on the rectified flow it is Euler's method in t.
    """

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
        for step in steps_along(schedule, times):
            now = ask(denoise, x, step.t)
            if on_step is not None:
                on_step(step.number, x, now)
            x = x + (step.alpha1 - step.alpha) * now.x0 + (step.sigma1 - step.sigma) * now.eps
        return x


@dataclass(frozen=True)
class Heun:
    """Second order, two network calls a step: x0 and eps by the trapezoidal rule in alpha and sigma.

    On the rectified flow this is Heun's method in t. A step that ends where sigma is 0 is Euler's, one call
    (Karras et al. 2022, 2206.00364, algorithm 1): no network is trained there, and the order stays two.
    """

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
        for step in steps_along(schedule, times):
            now = ask(denoise, x, step.t)
            if on_step is not None:
                on_step(step.number, x, now)
            d_alpha, d_sigma = step.alpha1 - step.alpha, step.sigma1 - step.sigma
            x1 = x + d_alpha * now.x0 + d_sigma * now.eps
            if step.sigma1 > 0:
                then = ask(denoise, x1, step.t1)
                x1 = x + d_alpha * 0.5 * (now.x0 + then.x0) + d_sigma * 0.5 * (now.eps + then.eps)
            x = x1
        return x


@dataclass(frozen=True, kw_only=True)
class DDIM:
    """Song et al. 2020, 2010.02502, eq. 12 and 16, stated by the SNR so that it holds for every schedule.

    Args:
        eta: How much of the noise is drawn anew in each step: 0 is deterministic (and the same as ``Euler``),
            1 is DDPM's ancestral sampling.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"DDIM needs eta in [0, 1], got eta={self.eta}")

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
        for step in steps_along(schedule, times):
            now = ask(denoise, x, step.t)
            if on_step is not None:
                on_step(step.number, x, now)
            # the variance of q(x_t1 | x_t, x0) is sigma1^2 * (1 - SNR(t) / SNR(t1))
            snr_ratio = (step.alpha * step.sigma1 / (step.alpha1 * step.sigma)) ** 2
            fresh = self.eta * step.sigma1 * math.sqrt(1 - snr_ratio)
            x = step.alpha1 * now.x0 + math.sqrt(step.sigma1**2 - fresh**2) * now.eps
            if fresh > 0:
                x = x + fresh * noise(step.number)
        return x
