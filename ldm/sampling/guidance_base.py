"""What the guidances share: when they act, one network call for both answers, and eps that follows x0.

Guidance compares a good answer (to the prompt) with a worse one (to no prompt, to a negative prompt, or of a weaker
network) and moves on in the direction from worse to good. What is done to x0 is done to eps such that both still
satisfy ``x_t = alpha * x0 + sigma * eps``, so every sampler can go on from either.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.schedules import t_at_log_snr
from ldm.interfaces import Conditioning, Denoiser, DenoiserFactory, Network, NoiseSchedule, Prediction

Time = Tensor | float
"""(B,), or one number where all rows stand at the same time."""

Pair = Callable[[Tensor, Time], tuple[Prediction, Prediction]]
"""(x_t, t) -> the good and the worse answer."""

Combine = Callable[[Tensor, Time, Prediction, Prediction], Prediction]
"""(x_t, t, good, worse) -> the guided answer."""

ALWAYS = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class ScaledGuidance(ABC):
    """Base of the guidances with a scale and a window of times; outside the window the good answer stands alone.

    Args:
        scale: 1 leaves the good answer as it is, more goes on in the direction from worse to good.
        interval: Times [from, to] at which guidance acts (Kynkäänniemi et al. 2024, 2404.07724).
        noise_interval: The same as noise levels sigma / alpha; None for no such limit. Both limits hold.
    """

    scale: float
    interval: tuple[float, float] = ALWAYS
    noise_interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        low, high = self.interval
        object.__setattr__(self, "interval", (float(low), float(high)))  # a config hands over a list
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance interval must satisfy 0 <= from <= to <= 1, got {self.interval}")
        if not math.isfinite(self.scale):
            raise ValueError(f"guidance scale={self.scale} must be a finite number")
        if self.noise_interval is not None:
            low, high = self.noise_interval
            object.__setattr__(self, "noise_interval", (float(low), float(high)))
            if not 0 <= low <= high:
                raise ValueError(
                    f"guidance noise_interval must satisfy 0 <= from <= to, got {self.noise_interval}"
                )

    @property
    def needs_uncond(self) -> bool:
        return self.scale != 1

    @abstractmethod
    def __call__(
        self,
        diffusion: DenoiserFactory,
        network: Network,
        cond: Conditioning,
        uncond: Conditioning | None,
        *,
        scales: Sequence[float] | None = None,
        weaker: Denoiser | None = None,
    ) -> Denoiser: ...

    def window(self, schedule: NoiseSchedule) -> tuple[float, float]:
        """The times [from, to] within both limits; from > to where there are none."""
        low, high = self.interval
        if self.noise_interval is not None:
            # the noise level rises with t, so the limits on it are limits on t: found once, before the walk
            levels = torch.tensor(self.noise_interval, dtype=torch.float64)
            first, last = t_at_log_snr(schedule, -2 * levels.log()).tolist()
            low, high = max(low, first), min(high, last)
        return low, high

    def factor(self, cond: Conditioning, scales: Sequence[float] | None) -> float | Tensor:
        """The scale, or one per prompt as (B, 1, 1, 1)."""
        if scales is None:
            return self.scale
        if len(scales) != len(cond):
            raise ValueError(f"got {len(scales)} guidance scales for {len(cond)} prompts")
        return torch.tensor(scales, dtype=torch.float32, device=cond.tokens.device)[:, None, None, None]


def within(window: tuple[float, float], *, plain: Denoiser, pair: Pair, combine: Combine) -> Denoiser:
    """The guided denoiser: ``plain`` alone outside the window, at its cost, ``combine`` of ``pair`` inside.

    Where a sampler gives the time as a number this is decided in Python. Rows at times of their own (B,) are decided
    one by one, which costs a look at the device unless the window is open.
    """
    low, high = window

    def denoise(x_t: Tensor, t: Time) -> Prediction:
        if not isinstance(t, Tensor):
            return combine(x_t, t, *pair(x_t, t)) if low <= t <= high else plain(x_t, t)
        if window == ALWAYS:
            return combine(x_t, t, *pair(x_t, t))
        inside = (t >= low) & (t <= high)  # (B,)
        if not bool(inside.any()):
            return plain(x_t, t)
        good, worse = pair(x_t, t)
        guided = combine(x_t, t, good, worse)
        return Prediction(*(torch.where(rows(inside), a, b) for a, b in zip(guided, good, strict=True)))

    return denoise


def doubled(
    diffusion: DenoiserFactory, network: Network, cond: Conditioning, uncond: Conditioning | None
) -> Pair:
    """Both answers of one network by one call on the batch twice.

    Raises:
        ValueError: There is not one null (or negative) condition for each prompt.
    """
    if uncond is None or len(uncond) != len(cond):
        got = "none" if uncond is None else str(len(uncond))
        raise ValueError(f"guidance needs a null condition for each of {len(cond)} prompts, got {got}")
    both = diffusion.denoiser(network, Conditioning.concatenate([cond, uncond]))

    def pair(x_t: Tensor, t: Time) -> tuple[Prediction, Prediction]:
        answers = both(torch.cat([x_t, x_t]), torch.cat([t, t]) if isinstance(t, Tensor) else t)
        (x0, x0_worse), (eps, eps_worse) = answers.x0.chunk(2), answers.eps.chunk(2)
        return Prediction(x0, eps), Prediction(x0_worse, eps_worse)

    return pair


def extrapolated(good: Prediction, worse: Prediction, scale: float | Tensor) -> Prediction:
    """worse + scale * (good - worse), of x0 and eps alike: both are linear in the network's output."""
    x0, eps = (w + scale * (g - w) for g, w in zip(good, worse, strict=True))
    return Prediction(x0, eps)


def moved(answer: Prediction, change: Tensor, schedule: NoiseSchedule, t: Time) -> Prediction:
    """The answer with ``change`` (B, C, H, W) added to its x0, and its eps moved so that x_t stays what it is."""
    alpha, sigma = alpha_sigma(schedule, t)
    return Prediction(x0=answer.x0 + change, eps=answer.eps - (alpha / sigma) * change)


def alpha_sigma(schedule: NoiseSchedule, t: Time) -> tuple[float, float] | tuple[Tensor, Tensor]:
    """As numbers where t is one, else (B, 1, 1, 1) each."""
    if isinstance(t, Tensor):
        return schedule.alpha(rows(t)), schedule.sigma(rows(t))
    time = torch.tensor(t, dtype=torch.float64)  # on the CPU: no device is asked
    return float(schedule.alpha(time)), float(schedule.sigma(time))


def rows(x: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), to broadcast against (B, C, H, W)."""
    return x[:, None, None, None]
