"""The one owner of the mathematics: training loss, validation and sampling read the same ``Diffusion``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.diffusion.contrast import Uncontrasted
from ldm.diffusion.mean_flow import Jump
from ldm.diffusion.parameterizations import solve
from ldm.diffusion.schedules import Schedule, at_least_float32, log_snr
from ldm.diffusion.training_noise import Independent, White
from ldm.diffusion.uncertainty import Certain
from ldm.interfaces import (
    Conditioning,
    Contrast,
    Coupling,
    Denoiser,
    MoreNoise,
    Network,
    NoiseSchedule,
    Parameterization,
    Prediction,
    TimeSampler,
    TrainingNoise,
    Uncertainty,
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
        noise: what the noise of training is like.
        coupling: which picture of a batch gets which noise.
        contrast: what is taken off the squared error for keeping away from other samples.
        uncertainty: brings the losses at different noise levels to one scale; may be a module with weights.
        t_range: the times that training and sampling use. Narrow it for a pair that is ill-posed at an end.

    Raises:
        ValueError: the parameterization leaves x0 and eps undetermined somewhere in ``t_range``; or a contrast, under
            which a loss can fall below 0, together with an uncertainty that learns the loss's logarithm.
    """

    schedule: NoiseSchedule
    parameterization: Parameterization
    time_sampler: TimeSampler
    weighting: Weighting
    noise: TrainingNoise = field(default_factory=White)
    coupling: Coupling = field(default_factory=Independent)
    contrast: Contrast = field(default_factory=Uncontrasted)
    uncertainty: Uncertainty = field(default_factory=Certain)
    t_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        t_min, t_max = self.t_range
        object.__setattr__(self, "t_range", (float(t_min), float(t_max)))  # a config hands over a list
        if not 0 <= t_min < t_max <= 1:
            raise ValueError(f"t_range must satisfy 0 <= t_min < t_max <= 1, got {self.t_range}")
        if not isinstance(self.contrast, Uncontrasted) and not isinstance(self.uncertainty, Certain):
            raise ValueError(
                f"{type(self.contrast).__name__} can make a loss negative, and {type(self.uncertainty).__name__} "
                f"learns its logarithm: use Uncontrasted or Certain"
            )
        # A shift by resolution moves times, it makes no pair ill-posed or well-posed: any shape will do.
        _refuse_ill_posed(self.schedule.for_latents((4, 32, 32)), self.parameterization, self.t_range)

    def for_latents(self, shape: tuple[int, int, int]) -> Diffusion:
        """This object for latents (C, H, W): its schedule resolved, everything else the same.

        ``loss``, ``predict`` and ``add_noise`` do it by themselves; samplers and grids are to be given the schedule of
        the result.
        """
        schedule = self.schedule.for_latents(shape)
        return self if schedule is self.schedule else replace(self, schedule=schedule)

    def times(self, u: Tensor, *, slots: range, num_slots: int) -> Tensor:
        """Uniform draws u (B,) from [0, 1), for ``slots`` of a global batch -> times (B,) in ``t_range``.

        A law in sigma needs the schedule: where that depends on the resolution, ask ``for_latents`` first.
        """
        t_min, t_max = self.t_range
        # 24-bit draws hit 0 itself once in 17 million: there a normal quantile is infinite and the SNR too.
        u = at_least_float32(u).clamp(2.0**-24, 1 - 2.0**-24)
        # The law is one over [0, 1], so it sees the schedule with the times of t_range stretched to that.
        stretched = _Stretched(schedule=self.schedule, t_range=self.t_range)
        law = self.time_sampler(u, slots=slots, num_slots=num_slots, schedule=stretched)
        return t_min + (t_max - t_min) * law

    def training_noise(self, x0: Tensor, eps: Tensor, more: MoreNoise) -> Tensor:
        """The noise to train with, from standard normal eps; x0, eps (B, C, H, W) -> (B, C, H, W)."""
        return self.coupling(x0, self.noise(eps, more))

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x0, eps (B, C, H, W), t (B,) -> x_t (B, C, H, W), float32."""
        alpha, sigma = _alpha_sigma(self._schedule_for(x0), t)
        return alpha * at_least_float32(x0) + sigma * at_least_float32(eps)

    def predict(self, network: Network, x_t: Tensor, t: Tensor, cond: Conditioning) -> Prediction:
        """What the network says of x_t (B, C, H, W) at t (B,), as x0 and eps, float32."""
        schedule = self._schedule_for(x_t)
        alpha, sigma = _alpha_sigma(schedule, t)
        p, q = self.parameterization.target_coeffs(alpha, sigma)
        x_t = at_least_float32(x_t)
        scale = self.parameterization.input_scale(alpha, sigma)
        output = network(scale * x_t, schedule.network_time(t), cond)
        return solve(x_t, at_least_float32(output), alpha, sigma, p, q)

    def denoiser(self, network: Network, cond: Conditioning) -> Denoiser:
        """Network and conditioning bound: (x_t, t) -> Prediction, t (B,) or one number for all rows.

        A ``Jump`` for t also tells the network over which span of time to average.
        """

        def denoise(x_t: Tensor, t: Tensor | float) -> Prediction:
            if isinstance(t, Tensor):
                return self.predict(network, x_t, t, cond)
            schedule, x_t = self._schedule_for(x_t), at_least_float32(x_t)
            at = _at_time(schedule, self.parameterization, float(t))  # type: ignore[arg-type]
            time = torch.full((x_t.shape[0],), at.network_time, dtype=torch.float32, device=x_t.device)
            told = cond
            if isinstance(t, Jump):
                told = replace(cond, span=torch.full_like(time, t - t.until))
            output = at_least_float32(network(_weighted(x_t, at.scale), time, told))
            return Prediction(x0=_weighted(x_t, *at.x0, output), eps=_weighted(x_t, *at.eps, output))

        return denoise

    def loss(self, network: Network, x0: Tensor, cond: Conditioning, *, eps: Tensor, t: Tensor) -> Tensor:
        """The weighted squared error of the network's output, a mean over C, H, W per sample.

        x0, eps (B, C, H, W), t (B,) -> (B,), float32 also under autocast. eps is taken as it is: ``training_noise``
        comes before.
        """
        schedule = self._schedule_for(x0)
        alpha, sigma = _alpha_sigma(schedule, t)
        p, q = self.parameterization.target_coeffs(alpha, sigma)
        x0, eps = at_least_float32(x0), at_least_float32(eps)
        x_t, target = alpha * x0 + sigma * eps, p * x0 + q * eps
        scale = self.parameterization.input_scale(alpha, sigma)
        output = at_least_float32(network(scale * x_t, schedule.network_time(t), cond))
        squared_error = (output - target).square().flatten(1).mean(1)
        squared_error = squared_error - self.contrast(output, x0, eps, p, q)
        level = log_snr(schedule, t)
        x0_factor = (sigma / (alpha * q - sigma * p)).square().flatten()
        return self.uncertainty(self.weighting(level, x0_factor) * squared_error, level)

    def _schedule_for(self, x: Tensor) -> NoiseSchedule:
        """x (B, C, H, W)."""
        channels, height, width = x.shape[1:]
        return self.schedule.for_latents((channels, height, width))


def _alpha_sigma(schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """t (B,) -> both (B, 1, 1, 1), to broadcast against (B, C, H, W)."""
    t = t.reshape(-1, 1, 1, 1)
    return schedule.alpha(t), schedule.sigma(t)


class _AtTime(NamedTuple):
    """What ``predict`` multiplies with at one time, as numbers: no kernels are spent on them in a sampler's step."""

    scale: float  # of the network's input
    network_time: float
    x0: tuple[float, float]  # x0 = x0[0] * x_t + x0[1] * output
    eps: tuple[float, float]


@lru_cache(
    maxsize=4096
)  # schedules and parameterizations are frozen dataclasses of numbers, so they have a hash
def _at_time(schedule: NoiseSchedule, parameterization: Parameterization, t: float) -> _AtTime:
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    p, q = parameterization.target_coeffs(alpha, sigma)
    det = alpha * q - sigma * p
    return _AtTime(
        scale=float(parameterization.input_scale(alpha, sigma)),
        network_time=float(schedule.network_time(time)),
        x0=(float(q / det), float(-sigma / det)),
        eps=(float(-p / det), float(alpha / det)),
    )


def _weighted(x: Tensor, a: float, b: float = 0.0, y: Tensor | None = None) -> Tensor:
    """a * x + b * y, without the kernels that would do nothing."""
    if y is None or b == 0:
        return x if a == 1 else x * a
    if a == 0:
        return y if b == 1 else y * b
    return (x if a == 1 else x * a).add(y, alpha=b)


@dataclass(frozen=True, kw_only=True)
class _Stretched(Schedule):
    """A schedule whose times in ``t_range`` are stretched to [0, 1]."""

    schedule: NoiseSchedule
    t_range: tuple[float, float]

    def alpha(self, t: Tensor) -> Tensor:
        return self.schedule.alpha(self._t(t))

    def sigma(self, t: Tensor) -> Tensor:
        return self.schedule.sigma(self._t(t))

    def _t(self, t: Tensor) -> Tensor:
        t_min, t_max = self.t_range
        return t_min + (t_max - t_min) * at_least_float32(t)


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
    # 1e-5: of 7 digits float32 keeps two, also for X0 at the small sigma with which VarianceExploding begins
    bad = ~(sine.abs() > 1e-5)  # also where it is not a number
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
