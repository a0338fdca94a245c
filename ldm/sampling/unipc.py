"""UniPC: a predictor, and a corrector that costs no network call (Zhao et al. 2023, 2302.04867)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ldm.interfaces import Denoiser, NoiseSchedule, NoiseSource, StepCallback
from ldm.sampling.exponential import order_of, predictor, taus_behind, weights
from ldm.sampling.walk import Row, Step, combine, steps_along


@dataclass(frozen=True, kw_only=True)
class UniPC:
    """UniPC in data prediction, one network call a step, of order ``order + 1``.

    The network is asked at the predicted x. Then the step that led there is taken again with its answer, as an
    implicit method would, and the next step starts from the corrected x. The last step is not corrected: no network
    is asked at its end.

    Args:
        order: How many x0 the predictor uses, 1 to 3; the corrector uses one more. 2 is for guided sampling.
        bh1: B(h) = h in place of exp(h) - 1 ("bh2"). Only the formulas with one free coefficient know the difference:
            order 2 of the predictor and order 1 of the corrector; the others are exact integrals, in which B(h)
            cancels. In a step from alpha = 0, where h is infinite, it is bh2 in any case.
    """

    order: int = 2
    bh1: bool = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"UniPC needs an order of 1, 2 or 3, got order={self.order}")

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
        predictors = [predictor(steps, i, self.order, bh1=self.bh1) for i in range(len(steps))]
        correctors = [self._corrector(steps, i) for i in range(len(steps) - 1)]
        seen: deque[Tensor] = deque(maxlen=self.order + 1)  # x0, the newest first
        before = x  # where the last step began
        for step in steps:
            now = denoise(x, step.t)
            if on_step is not None:
                on_step(step.number, x, now)
            seen.appendleft(now.x0)
            if step.number > 0:
                x = combine(correctors[step.number - 1], before, seen, noise, step.number)
            before = x
            x = combine(predictors[step.number], x, seen, noise, step.number)
        return x

    def _corrector(self, steps: Sequence[Step], i: int) -> Row:
        """Step i again, by a polynomial that also knows the x0 at its end, tau = 1: the newest of the weights."""
        step, order = steps[i], order_of(steps, i, self.order)
        whole = 1 - step.ratio
        if order == 1:
            half = 0.5 * (step.h if self.bh1 and math.isfinite(step.h) else whole)
            guesses = [half, whole - half]
        else:
            guesses = weights([1.0, *taus_behind(steps, i, order)], step.h)
        return Row(x=step.sigma1 / step.sigma, x0=tuple(step.alpha1 * w for w in guesses))
