"""Adaptive projected guidance: the part of guidance that only adds contrast is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ldm.interfaces import Conditioning, Denoiser, DenoiserFactory, Network, Prediction
from ldm.sampling.guidance_base import ScaledGuidance, Time, doubled, moved, within


@dataclass(frozen=True, kw_only=True)
class APG(ScaledGuidance):
    """Adaptive projected guidance (Sadat et al. 2024, 2410.02416), in x0 as the authors state it.

    d = x0(cond) - x0(uncond) is split into the part along x0(cond), which mostly saturates colours, and the part
    across it, which carries the prompt. High scales then cost less in realism::

        d <- d + momentum * d of the network call before
        d <- d * min(1, norm_threshold / |d|)
        x0 = x0(cond) + (scale - 1) * (d across + parallel * d along)

    With parallel = 1, momentum = 0 and no threshold this is ``ClassifierFree``.

    Args:
        scale: As of ``ClassifierFree``; bear in mind that much higher ones are usable.
        parallel: How much of the part along x0(cond) is kept (eta in the paper), 0 for none.
        momentum: Weight of the former directions, negative: what was pushed before is pushed less. It is remembered
            within one walk, per network call at which guidance acts.
        norm_threshold: Longest d per picture, over all its latents (r in the paper); None for no limit. The length
            grows with the square root of the number of latents.
        interval: Times [from, to] at which guidance acts; elsewhere the conditional prediction stands.
        noise_interval: The same as noise levels sigma / alpha; None for no such limit.
    """

    parallel: float = 0.0
    momentum: float = -0.5
    norm_threshold: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 < self.momentum < 1:
            raise ValueError(f"APG needs momentum in (-1, 1), got momentum={self.momentum}")
        if self.norm_threshold is not None and not self.norm_threshold > 0:
            raise ValueError(f"APG needs norm_threshold > 0 or null, got {self.norm_threshold}")

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
        plain = diffusion.denoiser(network, cond)
        if self.scale == 1 and scales is None:
            return plain
        schedule, scale = diffusion.schedule, self.factor(cond, scales)
        before: Tensor | None = None  # of this walk only: another call of the guidance begins anew

        def combine(x_t: Tensor, t: Time, good: Prediction, worse: Prediction) -> Prediction:
            nonlocal before
            direction = good.x0 - worse.x0  # (B, C, H, W)
            if self.momentum:
                direction = direction if before is None else direction + self.momentum * before
                before = direction
            if self.norm_threshold is not None:
                length = direction.flatten(1).norm(dim=1)[:, None, None, None]
                direction = direction * (self.norm_threshold / length.clamp(min=1e-12)).clamp(max=1)
            if self.parallel != 1:
                direction = direction - (1 - self.parallel) * along(direction, good.x0)
            return moved(good, (scale - 1) * direction, schedule, t)

        pair = doubled(diffusion, network, cond, uncond)
        return within(self.window(schedule), plain=plain, pair=pair, combine=combine)


def along(x: Tensor, axis: Tensor) -> Tensor:
    """The part of each picture's x that is parallel to its axis; all (B, C, H, W)."""
    share = (x * axis).flatten(1).sum(1) / axis.square().flatten(1).sum(1).clamp(min=1e-12)
    return share[:, None, None, None] * axis
