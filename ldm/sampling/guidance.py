"""Guidance turns a network and two conditionings into a denoiser; samplers never hear of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.interfaces import Conditioning, Denoiser, DenoiserFactory, Network, Prediction


@dataclass(frozen=True)
class Unguided:
    """The conditional prediction as it is; the unconditional one is never asked for."""

    def __call__(
        self, diffusion: DenoiserFactory, network: Network, cond: Conditioning, uncond: Conditioning | None
    ) -> Denoiser:
        return diffusion.denoiser(network, cond)


@dataclass(frozen=True, kw_only=True)
class ClassifierFree:
    """uncond + scale * (cond - uncond) (Ho & Salimans 2022, 2207.12598), by one call on a doubled batch.

    Applied to x0 and eps alike, so both still agree with x_t, whatever the network predicts.

    Args:
        scale: 1 is ``Unguided`` (one call on the plain batch), 0 ignores the prompt, more follows it more closely.
        interval: Times [from, to] at which guidance acts (Kynkäänniemi et al. 2024, 2404.07724); elsewhere
            the conditional prediction stands, at half the cost.
    """

    scale: float
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        low, high = self.interval
        object.__setattr__(self, "interval", (float(low), float(high)))  # a config hands over a list
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance interval must satisfy 0 <= from <= to <= 1, got {self.interval}")

    def __call__(
        self, diffusion: DenoiserFactory, network: Network, cond: Conditioning, uncond: Conditioning | None
    ) -> Denoiser:
        plain = diffusion.denoiser(network, cond)
        if self.scale == 1:
            return plain
        if uncond is None or len(uncond) != len(cond):
            got = "none" if uncond is None else str(len(uncond))
            raise ValueError(f"guidance needs a null condition for each of {len(cond)} prompts, got {got}")
        both = diffusion.denoiser(network, Conditioning.concatenate([cond, uncond]))
        low, high = self.interval

        def guided(x_t: Tensor, t: Tensor) -> Prediction:
            inside = (t >= low) & (t <= high)  # (B,)
            if not bool(inside.any()):
                return plain(x_t, t)
            answers = both(torch.cat([x_t, x_t]), torch.cat([t, t]))  # (2B, C, H, W) each
            scale = torch.where(inside, self.scale, 1.0).reshape(-1, *(1,) * (x_t.ndim - 1))

            def combine(answer: Tensor) -> Tensor:
                with_prompt, without = answer.chunk(2)
                return without + scale * (with_prompt - without)

            return Prediction(x0=combine(answers.x0), eps=combine(answers.eps))

        return guided
