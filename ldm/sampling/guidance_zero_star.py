"""CFG-Zero*: guidance for flow matching models that are not fully trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ldm.interfaces import Conditioning, Denoiser, DenoiserFactory, Network, Prediction
from ldm.sampling.guidance_base import ScaledGuidance, Time, alpha_sigma, doubled, within
from ldm.sampling.guidance_projected import along


@dataclass(frozen=True, kw_only=True)
class CFGZeroStar(ScaledGuidance):
    """CFG-Zero* (Fan et al. 2025, 2503.18886): the unconditional velocity scaled to fit, the first steps held.

    With v = eps - x0, the velocity of the rectified flow, and s = <v(cond), v(uncond)> / |v(uncond)|^2 for each
    picture::

        v = s * v(uncond) + scale * (v(cond) - s * v(uncond))

    Next to pure noise the velocity of an underfitted model is worse than none: there v = 0, and no network is asked.

    The paper speaks of the rectified flow. x_t / (alpha + sigma) of any schedule is a rectified flow's x_t at time
    sigma / (alpha + sigma), with the same x0 and eps, so v and its zero (x0 = eps) mean the same for every schedule.

    Args:
        scale: As of ``ClassifierFree``.
        zero_init: The share of times next to pure noise at which x is held, in [0, 1); 0 for none. The paper holds
            the first 4 % of the steps. A time rather than a count, so that it does not depend on the sampler; held
            steps suit samplers without memory (Euler, Heun), a multistep sampler would remember them as x0.
        interval: Times [from, to] at which guidance acts; elsewhere the conditional prediction stands.
        noise_interval: The same as noise levels sigma / alpha; None for no such limit.
    """

    zero_init: float = 0.04

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.zero_init < 1:
            raise ValueError(f"CFGZeroStar needs zero_init in [0, 1), got zero_init={self.zero_init}")

    @property
    def needs_uncond(self) -> bool:
        return True

    def __call__(
        self,
        diffusion: DenoiserFactory,
        network: Network,
        cond: Conditioning,
        uncond: Conditioning | None,
        *,
        scales: Sequence[float] | None = None,
        weaker: Denoiser | None = None,
    ) -> Denoiser:
        schedule, scale = diffusion.schedule, self.factor(cond, scales)

        def with_velocity(x_t: Tensor, t: Time, v: Tensor | float) -> Prediction:
            alpha, sigma = alpha_sigma(schedule, t)
            return Prediction(x0=(x_t - sigma * v) / (alpha + sigma), eps=(x_t + alpha * v) / (alpha + sigma))

        def combine(x_t: Tensor, t: Time, good: Prediction, worse: Prediction) -> Prediction:
            v = good.eps - good.x0  # (B, C, H, W)
            v_fitted = along(v, worse.eps - worse.x0)
            return with_velocity(x_t, t, v_fitted + scale * (v - v_fitted))

        guided = within(
            self.window(schedule),
            plain=diffusion.denoiser(network, cond),
            pair=doubled(diffusion, network, cond, uncond),
            combine=combine,
        )
        held_from = (
            1 - self.zero_init + 1e-6
        )  # so that a step at 1 - zero_init itself is taken, in float32 too

        def denoise(x_t: Tensor, t: Time) -> Prediction:
            if not isinstance(t, Tensor):
                return with_velocity(x_t, t, 0.0) if t > held_from else guided(x_t, t)
            held = (t > held_from)[:, None, None, None]
            answers = zip(with_velocity(x_t, t, 0.0), guided(x_t, t), strict=True)
            return Prediction(*(zero.where(held, answer) for zero, answer in answers))

        return denoise
