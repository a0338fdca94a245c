"""The noise that training adds: what it is like, and which picture of the batch gets which."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.schedules import at_least_float32
from ldm.interfaces import MoreNoise


@dataclass(frozen=True)
class White:
    """Standard normal noise, independent in every place."""

    def __call__(self, eps: Tensor, more: MoreNoise) -> Tensor:
        return eps


@dataclass(frozen=True, kw_only=True)
class NoiseOffset:
    """White noise plus one normal number per channel, the same in every place.

    White noise hardly touches a picture's mean colour, so a network learns to read it off x_t and cannot make very dark
    or very bright pictures (Guttenberg 2023, "Diffusion with Offset Noise"). ``ZeroTerminalSNR`` mends the same at its
    root.

    Args:
        strength: Standard deviation of the offset; 0.1 in the original.
    """

    strength: float = 0.1

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise ValueError(f"NoiseOffset needs strength >= 0, got strength={self.strength}")

    def __call__(self, eps: Tensor, more: MoreNoise) -> Tensor:
        return eps + self.strength * more((eps.shape[1], 1, 1))  # (B, C, 1, 1)


@dataclass(frozen=True)
class Independent:
    """Each picture gets its own noise."""

    def __call__(self, x0: Tensor, eps: Tensor) -> Tensor:
        return eps


@dataclass(frozen=True)
class Immiscible:
    """The batch's noises go to the pictures they are nearest to, over all pairs (Li et al. 2024, 2406.12303).

    The optimal assignment by Euclidean distance, found on the CPU: about B^3, and on a GPU the step waits for it. Each
    noise is still used once, so the noise as a whole stays normal; noise and picture are no longer independent.

    Pairs are made within one process, so the result depends on how many share the global batch, unlike all other
    randomness here.
    """

    def __call__(self, x0: Tensor, eps: Tensor) -> Tensor:
        from scipy.optimize import linear_sum_assignment  # a large import, for this choice only

        with torch.no_grad(), torch.autocast(x0.device.type, enabled=False):
            distances = torch.cdist(at_least_float32(x0).flatten(1), at_least_float32(eps).flatten(1))
        _, columns = linear_sum_assignment(distances.cpu().numpy())
        return eps[torch.from_numpy(columns).to(eps.device)]
