"""The one owner of the mathematics: training loss, validation and sampling read the same ``Diffusion``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.parameterizations import solve
from ldm.diffusion.schedules import at_least_float32, log_snr
from ldm.interfaces import (
    Conditioning,
    Denoiser,
    Network,
    NoiseSchedule,
    Parameterization,
    Prediction,
    TimeSampler,
    Weighting,
)


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """A schedule, what the network predicts, which times it is trained at, and how they are weighted.

    Args:
        schedule: alpha(t) and sigma(t).
        parameterization: what the network outputs.
        time_sampler: the law of t in training, over ``t_range``.
        weighting: of the loss.
        t_range: the times that training and sampling use. Narrow it for a pair that is ill-posed at an end.

    Raises:
        ValueError: the parameterization leaves x0 and eps undetermined somewhere in ``t_range``.
    """

    schedule: NoiseSchedule
    parameterization: Parameterization
    time_sampler: TimeSampler
    weighting: Weighting
    t_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        t_min, t_max = self.t_range
        object.__setattr__(self, "t_range", (float(t_min), float(t_max)))  # a config hands over a list
        if not 0 <= t_min < t_max <= 1:
            raise ValueError(f"t_range must satisfy 0 <= t_min < t_max <= 1, got {self.t_range}")
        _refuse_ill_posed(self.schedule, self.parameterization, self.t_range)

    def times(self, u: Tensor, *, slots: range, num_slots: int) -> Tensor:
        """Uniform draws u (B,) from [0, 1), for ``slots`` of a global batch -> times (B,) in ``t_range``."""
        t_min, t_max = self.t_range
        # 24-bit draws hit 0 itself once in 17 million: there a normal quantile is infinite and the SNR too.
        u = at_least_float32(u).clamp(2.0**-24, 1 - 2.0**-24)
        return t_min + (t_max - t_min) * self.time_sampler(u, slots=slots, num_slots=num_slots)

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x0, eps (B, C, H, W), t (B,) -> x_t (B, C, H, W), float32."""
        alpha, sigma = self._alpha_sigma(t, x0)
        return alpha * at_least_float32(x0) + sigma * at_least_float32(eps)

    def predict(self, network: Network, x_t: Tensor, t: Tensor, cond: Conditioning) -> Prediction:
        """What the network says of x_t (B, C, H, W) at t (B,), as x0 and eps, float32."""
        alpha, sigma = self._alpha_sigma(t, x_t)
        p, q = self.parameterization.target_coeffs(alpha, sigma)
        x_t = at_least_float32(x_t)
        output = network(self.parameterization.input_scale(alpha, sigma) * x_t, t, cond)
        return solve(x_t, at_least_float32(output), alpha, sigma, p, q)

    def denoiser(self, network: Network, cond: Conditioning) -> Denoiser:
        """Network and conditioning bound: (x_t, t) -> Prediction."""

        def denoise(x_t: Tensor, t: Tensor) -> Prediction:
            return self.predict(network, x_t, t, cond)

        return denoise

    def loss(self, network: Network, x0: Tensor, cond: Conditioning, *, eps: Tensor, t: Tensor) -> Tensor:
        """The weighted squared error of the network's output, a mean over C, H, W per sample.

        x0, eps (B, C, H, W), t (B,) -> (B,), float32 also under autocast.
        """
        alpha, sigma = self._alpha_sigma(t, x0)
        p, q = self.parameterization.target_coeffs(alpha, sigma)
        x0, eps = at_least_float32(x0), at_least_float32(eps)
        x_t, target = alpha * x0 + sigma * eps, p * x0 + q * eps
        output = network(self.parameterization.input_scale(alpha, sigma) * x_t, t, cond)
        squared_error = (at_least_float32(output) - target).square().flatten(1).mean(1)
        x0_factor = (sigma / (alpha * q - sigma * p)).square().flatten()
        return self.weighting(log_snr(self.schedule, t), x0_factor) * squared_error

    def _alpha_sigma(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both (B, 1, 1, 1), to broadcast against x (B, C, H, W)."""
        t = t.reshape(-1, *(1,) * (x.ndim - 1))
        return self.schedule.alpha(t), self.schedule.sigma(t)


def _refuse_ill_posed(
    schedule: NoiseSchedule, parameterization: Parameterization, t_range: tuple[float, float]
) -> None:
    """Raise where the 2x2 system of ``parameterizations.solve`` is singular or nearly so.

    Times at which sigma is 0 are left out: there x_t is the picture itself, and no sampler asks.
    """
    t = torch.linspace(*t_range, 1025, dtype=torch.float64)
    t = t[schedule.sigma(t) > 0]
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    p, q = parameterization.target_coeffs(alpha, sigma)
    # the sine of the angle between the lines (alpha, sigma) and (p, q): it does not care how either is scaled
    sine = (alpha * q - sigma * p) / (torch.hypot(alpha, sigma) * torch.hypot(p, q))
    bad = ~(sine.abs() > 1e-4)  # also where it is not a number
    bad[1:] |= sine[1:] * sine[:-1] < 0  # it went through 0 between two of our times
    if not bad.any():
        return
    t_bad, alpha_bad, sigma_bad = (float(x[bad][0]) for x in (t, alpha, sigma))
    remedy = "Use the parameterization V or Flow"
    good = t[~bad]
    if len(good) and int(bad.diff().sum()) == 1:  # only one end is bad: it can be cut off
        low = t_range[0] if not bad[0] else math.ceil(float(good[0]) * 1e3) / 1e3
        high = t_range[1] if not bad[-1] else math.floor(float(good[-1]) * 1e3) / 1e3
        remedy += f", or leave these times out with t_range=[{low:g}, {high:g}]"
    raise ValueError(
        f"{type(parameterization).__name__} with {type(schedule).__name__} is ill-posed at t = {t_bad:.4g} "
        f"(alpha = {alpha_bad:.3g}, sigma = {sigma_bad:.3g}): x_t and the network's output do not determine "
        f"x0 and eps there. {remedy}."
    )
