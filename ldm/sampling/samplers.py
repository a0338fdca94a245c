"""The samplers of first order, and Heun's: where each starts is explained in ``walk``.

A step of first order holds x0 over the step and may draw a part of the noise anew. With ``keep`` the part of the noise
direction that is kept, every one of them is

    x1 = alpha1 * x0 + sigma1 * (keep * eps + sqrt(1 - keep^2) * fresh noise)

so x1 has the right mean and variance given x0 whatever ``keep`` is; they differ in ``keep`` alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.interfaces import Denoiser, NoiseSchedule, NoiseSource, StepCallback
from ldm.sampling.walk import LinearSampler, Row, Step, combine, steps_along


def first_order(step: Step, *, keep: float = 1.0) -> Row:
    """The line above, eps written as (x - alpha * x0) / sigma."""
    scale = keep * step.sigma1 / step.sigma
    fresh = step.sigma1 * math.sqrt((1 - keep) * (1 + keep))
    return Row(x=scale, x0=(step.alpha1 - scale * step.alpha,), noise=fresh)


def renewed(step: Step, eta: float) -> Row:
    """``eta`` times the noise of q(x1 | x, x0), whose variance is sigma1^2 (1 - ratio^2), drawn anew."""
    return first_order(step, keep=math.sqrt(1 - eta**2 + (eta * step.ratio) ** 2))


@dataclass(frozen=True)
class Euler(LinearSampler):
    """First order, deterministic: DDIM with eta = 0, and Euler's method in sigma / alpha (Karras et al. 2022).

    On the rectified flow it is Euler's method in t.
    """

    def rows(self, steps: Sequence[Step]) -> list[Row]:
        return [first_order(step) for step in steps]


@dataclass(frozen=True, kw_only=True)
class DDIM(LinearSampler):
    """Song et al. 2020, 2010.02502, eq. 12 and 16, stated by the SNR so that it holds for every schedule.

    Args:
        eta: How much of the noise is drawn anew in each step: 0 is deterministic (and the same as ``Euler``),
            1 is DDPM's ancestral sampling.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"DDIM needs eta in [0, 1], got eta={self.eta}")

    def rows(self, steps: Sequence[Step]) -> list[Row]:
        return [renewed(step, self.eta) for step in steps]


@dataclass(frozen=True, kw_only=True)
class DDPM(LinearSampler):
    """Ancestral sampling (Ho et al. 2020, 2006.11239, eq. 7 and section 3.2), over any times and any schedule.

    Args:
        large_variance: The variance of a step, between the two that Ho et al. name, on a log scale: 0 is that of
            q(x1 | x, x0), sigma1^2 (1 - ratio^2), "fixed small"; 1 is that of q(x | x1), sigma^2 (1 - ratio^2), their
            beta, "fixed large". The step to sigma = 0 draws no noise.
    """

    large_variance: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.large_variance <= 1.0:
            raise ValueError(f"DDPM needs large_variance in [0, 1], got large_variance={self.large_variance}")

    def rows(self, steps: Sequence[Step]) -> list[Row]:
        rows = [renewed(step, 1.0) for step in steps]
        return [
            row._replace(noise=row.noise * (step.sigma / step.sigma1) ** self.large_variance)
            if step.sigma1 > 0
            else row
            for row, step in zip(rows, steps, strict=True)
        ]


@dataclass(frozen=True)
class Heun:
    """Second order, two network calls a step: x0 and eps by the trapezoidal rule in alpha and sigma.

    The ODE in the form ``dx = x0 dalpha + eps dsigma``. On a variance exploding schedule this is the method of Karras
    et al. 2022, 2206.00364, algorithm 1, and on the rectified flow Heun's method in t. It needs no log-SNR, so it may
    start at alpha = 0. A step to sigma = 0 is Euler's, one call: no network is trained there, and the order stays two.
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
        """x (B, C, H, W) at times[0], times (num_steps + 1,) falling -> x at times[-1]."""
        for step in steps_along(schedule, times):
            now = denoise(x, step.t)
            if on_step is not None:
                on_step(step.number, x, now)
            x1 = combine(first_order(step), x, [now.x0], noise, step.number)
            if step.sigma1 > 0:
                then = denoise(x1, step.t1)
                d_alpha, d_sigma = step.alpha1 - step.alpha, step.sigma1 - step.sigma
                # the mean of this step with what was said at its start, and with what was said at its end
                x1 = torch.lerp(x1, x.add(then.x0, alpha=d_alpha).add(then.eps, alpha=d_sigma), 0.5)
            x = x1
        return x
