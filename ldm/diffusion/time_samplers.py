"""The law of t in training, as quantile functions: uniform draws in, times out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.interfaces import TimeSampler


@dataclass(frozen=True)
class Uniform:
    """Every time alike."""

    def __call__(self, u: Tensor, *, slots: range, num_slots: int) -> Tensor:
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

    def __call__(self, u: Tensor, *, slots: range, num_slots: int) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True, kw_only=True)
class Stratified:
    """One draw from each of ``num_slots`` equally likely strata of ``law``, over the whole global batch.

    The same law for each sample, with far less variance of the batch's loss (Kingma et al. 2021,
    2107.00630, appendix I.1). Slots and not ranks decide, so any number of processes gives the same times.
    """

    law: TimeSampler

    def __call__(self, u: Tensor, *, slots: range, num_slots: int) -> Tensor:
        if len(u) != len(slots) or slots.start < 0 or slots.stop > num_slots:
            raise ValueError(f"{len(u)} draws do not fit {slots} out of {num_slots} slots")
        slot = torch.tensor(slots, dtype=torch.float64, device=u.device)
        within = ((slot + u.double()) / num_slots).to(u.dtype)
        return self.law(within, slots=slots, num_slots=num_slots)
