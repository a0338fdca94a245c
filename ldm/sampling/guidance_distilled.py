"""Guidance that the network has learned itself: it is told the scale and answers as if guided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ldm.interfaces import Conditioning, Denoiser, DenoiserFactory, Network


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """One call on the plain batch, with the scale as an input (Meng et al. 2022, 2210.03142).

    For networks such as FLUX.1 [dev]; others do not hear it.

    Args:
        scale: What the network is told.
    """

    scale: float

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
        """``scales``, one for each prompt, replace the scale; ``weaker`` is not asked."""
        told = [self.scale] * len(cond) if scales is None else list(scales)
        guidance = torch.tensor(told, dtype=torch.float32, device=cond.tokens.device)
        return diffusion.denoiser(network, replace(cond, guidance=guidance))
