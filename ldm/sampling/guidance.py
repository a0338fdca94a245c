"""Guidance turns a network and two conditionings into a denoiser; samplers never hear of it.

Here are the plain ones; ``guidance_projected.py`` has APG and ``guidance_zero_star.py`` CFG-Zero*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ldm.interfaces import Conditioning, Denoiser, DenoiserFactory, Network, Prediction
from ldm.sampling.guidance_base import ScaledGuidance, Time, doubled, extrapolated, moved, within


@dataclass(frozen=True)
class Unguided:
    """The conditional prediction as it is; the unconditional one is never asked for."""

    @property
    def needs_uncond(self) -> bool:
        return False

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
        if scales is not None:
            raise ValueError("Unguided has no scale: leave out the prompts' own, or take another guidance")
        return diffusion.denoiser(network, cond)


@dataclass(frozen=True, kw_only=True)
class ClassifierFree(ScaledGuidance):
    """uncond + scale * (cond - uncond) (Ho & Salimans 2022, 2207.12598), by one call on a doubled batch.

    Applied to x0 and eps alike, so both still agree with x_t, whatever the network predicts.

    Args:
        scale: 1 is ``Unguided`` (one call on the plain batch), 0 ignores the prompt, more follows it more closely.
        interval: Times [from, to] at which guidance acts (Kynkäänniemi et al. 2024, 2404.07724); elsewhere
            the conditional prediction stands, at half the cost.
        noise_interval: The same as noise levels sigma / alpha, as that paper states it; None for no such limit.
        rescale: How far the contrast that guidance adds is taken back, in [0, 1]: x0 is multiplied such that its
            standard deviation is that of the conditional x0 (1), or left (0), or in between (Lin et al. 2023,
            2305.08891, section 3.4, who use 0.7). They rescale the network's output, a velocity; here it is x0, so
            that it means the same for every parameterization. Near t = 1, where it matters, the two agree.
    """

    rescale: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance rescale={self.rescale} must lie in [0, 1]")

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

        def combine(x_t: Tensor, t: Time, good: Prediction, worse: Prediction) -> Prediction:
            guided = extrapolated(good, worse, scale)
            if self.rescale == 0:
                return guided
            spread, wanted = (x0.flatten(1).std(1)[:, None, None, None] for x0 in (guided.x0, good.x0))
            # where x0 is flat there is no contrast to take back
            excess = self.rescale * (1 - wanted / spread.clamp(min=1e-12))
            return moved(guided, -excess * guided.x0, schedule, t)

        pair = doubled(diffusion, network, cond, uncond)
        return within(self.window(schedule), plain=plain, pair=pair, combine=combine)


@dataclass(frozen=True, kw_only=True)
class Autoguidance(ScaledGuidance):
    """weak + scale * (good - weak), both with the prompt (Karras et al. 2024, 2406.02507).

    The worse answer is that of a weaker model: trained for a shorter time, or smaller. It errs where the good one
    errs, only more, so the direction away from it is towards quality, with no loss of variety. Two network calls.

    Args:
        run: The weaker model, a run or a checkpoint; whoever loads the runs hands its denoiser over.
        weights: "ema" or "online": which of its weights.
        scale: 1 is ``Unguided``, more goes further from the weaker model.
        interval: Times [from, to] at which guidance acts; elsewhere the good model stands, at its cost alone.
        noise_interval: The same as noise levels sigma / alpha; None for no such limit.
    """

    run: str
    weights: str = "ema"

    @property
    def needs_uncond(self) -> bool:
        return False

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
        if weaker is None:
            raise ValueError(
                f"autoguidance needs the denoiser of the weaker model {self.run}, and it was not loaded: "
                f"sample.py and ldm evaluate load it, a training has no place for it"
            )
        guide, scale = weaker, self.factor(cond, scales)

        def pair(x_t: Tensor, t: Time) -> tuple[Prediction, Prediction]:
            return plain(x_t, t), guide(x_t, t)

        def combine(x_t: Tensor, t: Time, good: Prediction, worse: Prediction) -> Prediction:
            return extrapolated(good, worse, scale)

        return within(self.window(diffusion.schedule), plain=plain, pair=pair, combine=combine)
