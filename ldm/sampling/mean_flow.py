"""Sampling with networks that answer average velocities: as many network calls as jumps, from one on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ldm.diffusion.mean_flow import Jump
from ldm.interfaces import Denoiser, NoiseSchedule, NoiseSource, StepCallback
from ldm.sampling.samplers import first_order
from ldm.sampling.walk import combine, steps_along


@dataclass(frozen=True)
class MeanFlow:
    """x_r = x_t - (t - r) u(x_t, r, t), deterministic (Geng et al. 2025, 2505.13447, eq. 12).

    It is Euler's step with the network told where the step ends. With a network that does not hear that, it is
    ``Euler``.
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
            answer = denoise(x, Jump(step.t, until=step.t1))
            if on_step is not None:
                on_step(step.number, x, answer)
            x = combine(first_order(step), x, [answer.x0], noise, step.number)
        return x
