"""Guidance scales that a network is taught, to be told one later."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class GuidanceScales:
    """Uniform over a range (Luo et al. 2023, 2310.04378, section 4.2, their w being scale - 1).

    Args:
        lowest: At least 1, the conditional answer as it is.
        highest: Equal to ``lowest`` for a network that is taught one scale only.
    """

    lowest: float = 1.0
    highest: float = 4.0

    def __post_init__(self) -> None:
        if not 1 <= self.lowest <= self.highest < math.inf:
            raise ValueError(
                f"guidance scales must satisfy 1 <= lowest <= highest, got {self.lowest} and {self.highest}"
            )

    def __call__(self, u: Tensor) -> Tensor:
        """Uniform draws u (B,) from [0, 1) -> scales (B,)."""
        return self.lowest + (self.highest - self.lowest) * u

    def refuse_deaf(self, network: nn.Module) -> None:
        """
        Raises:
            ValueError: There are several scales, and the network is told none.
        """
        told = any("guidance_embedding." in name for name, _ in network.named_parameters())
        if self.lowest < self.highest and not told:
            raise ValueError(
                f"{type(network).__name__} is not told of guidance, and scales from {self.lowest:g} to "
                f"{self.highest:g} are to be taught: give network.guidance=<a scale within>, or one scale only by "
                f"task.objective.scales.lowest={self.highest:g}"
            )
