"""The law of t in training, as quantile functions: uniform draws in, times out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.schedules import t_at_log_snr
from ldm.interfaces import NoiseSchedule, TimeSampler

LARGEST = 1 - 2.0**-24  # the largest float32 below 1


@dataclass(frozen=True)
class Uniform:
    """Every time alike."""

    def __call__(self, u: Tensor, *, slots: range, num_slots: int, schedule: NoiseSchedule) -> Tensor:
        return u


@dataclass(frozen=True, kw_only=True)
class LogitNormal:
    """logit(t) ~ N(mean, std^2): more weight on the middle (Esser et al. 2024, 2403.03206, eq. 19).

    A mean above 0 leans towards noise, below 0 towards data.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"LogitNormal needs std > 0, got std={self.std}")

    def __call__(self, u: Tensor, *, slots: range, num_slots: int, schedule: NoiseSchedule) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True, kw_only=True)
class ModeHeavyTails:
    """More weight on the middle, and some on every time (Esser et al. 2024, 2403.03206, section 3.1).

    Their f_mode falls in u; here it is ``t = f_mode(1 - u)``, which has the same law and rises.

    Args:
        scale: Their s, in [-1, 2 / (pi - 2)]: above 0 more weight on the middle, 0 is ``Uniform``, below 0 more on the
            ends. Beyond these bounds it would not be a quantile function.
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise ValueError(
                f"ModeHeavyTails needs scale in [-1, {2 / (math.pi - 2):.4f}], got scale={self.scale}"
            )

    def __call__(self, u: Tensor, *, slots: range, num_slots: int, schedule: NoiseSchedule) -> Tensor:
        return u + self.scale * (u - torch.sin(0.5 * math.pi * u).square())


@dataclass(frozen=True)
class CosMap:
    """The rectified flow's times with the log-SNR of uniform times of ``Cosine`` (2403.03206, section 3.1).

    Its density is 2 / (pi (1 - 2 t + 2 t^2)): at the middle twice that of the ends.
    """

    def __call__(self, u: Tensor, *, slots: range, num_slots: int, schedule: NoiseSchedule) -> Tensor:
        # 1 - 1 / (tan(pi/2 u) + 1); the cosine as a sine, which cannot fall below 0 by rounding
        noise, data = torch.sin(0.5 * math.pi * u), torch.sin(0.5 * math.pi * (1 - u))
        return noise / (noise + data)


@dataclass(frozen=True, kw_only=True)
class LogNormalSigma:
    """ln(sigma / alpha) ~ N(mean, std^2), through any schedule (Karras et al. 2022, 2206.00364, table 1).

    A noise level that the schedule does not reach becomes its nearest end.

    Args:
        mean: Their P_mean.
        std: Their P_std.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"LogNormalSigma needs std > 0, got std={self.std}")

    def __call__(self, u: Tensor, *, slots: range, num_slots: int, schedule: NoiseSchedule) -> Tensor:
        log_sigma = self.mean + self.std * torch.special.ndtri(u.double())
        return t_at_log_snr(schedule, -2 * log_sigma).to(u)


@dataclass(frozen=True, kw_only=True)
class Beta:
    """t ~ Beta(alpha, beta): each end can be favoured or left out on its own.

    The density is proportional to t^(alpha - 1) (1 - t)^(beta - 1): alpha > beta leans towards noise, both 1 is
    ``Uniform``, both below 1 favours the ends.
    """

    alpha: float = 1.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        if not (self.alpha > 0 and self.beta > 0):
            raise ValueError(f"Beta needs alpha > 0 and beta > 0, got alpha={self.alpha}, beta={self.beta}")

    def __call__(self, u: Tensor, *, slots: range, num_slots: int, schedule: NoiseSchedule) -> Tensor:
        from scipy.special import betaincinv  # torch has no inverse of the incomplete beta function

        t = torch.from_numpy(betaincinv(self.alpha, self.beta, u.double().cpu().numpy()))
        # With a parameter far below 1 it comes so near to the ends that a squared sigma or alpha would round to 0.
        return t.clamp(1e-12, LARGEST).to(u)


@dataclass(frozen=True, kw_only=True)
class Stratified:
    """One draw from each of ``num_slots`` equally likely strata of ``law``, over the whole global batch.

    The same law for each sample, with far less variance of the batch's loss (Kingma et al. 2021,
    2107.00630, appendix I.1). Slots and not ranks decide, so any number of processes gives the same times.
    """

    law: TimeSampler

    def __call__(self, u: Tensor, *, slots: range, num_slots: int, schedule: NoiseSchedule) -> Tensor:
        if len(u) != len(slots) or slots.start < 0 or slots.stop > num_slots:
            raise ValueError(f"{len(u)} draws do not fit {slots} out of {num_slots} slots")
        slot = torch.tensor(slots, dtype=torch.float64, device=u.device)
        within = ((slot + u.double()) / num_slots).to(u.dtype)
        # the last slot's largest draws would round up to 1, where quantiles are infinite
        within = within.clamp(max=LARGEST)
        return self.law(within, slots=slots, num_slots=num_slots, schedule=schedule)
