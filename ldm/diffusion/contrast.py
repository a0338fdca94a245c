"""What may be taken off the squared error: the distance to where other samples should go."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Uncontrasted:
    """Nothing."""

    def __call__(self, output: Tensor, x0: Tensor, eps: Tensor, p: Tensor, q: Tensor) -> Tensor:
        return output.new_zeros(len(output))


@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """``strength`` times the squared distance to another sample's target (Stoica et al. 2025, 2506.05350).

    Pushes the outputs for different prompts apart, so that guidance is needed less. The other sample is the one before
    in the batch of this process, with its own noise, at this sample's time; in a batch of one nothing is taken off. The
    loss may fall below 0. Stated for flow matching, it holds for every parameterization.

    Args:
        strength: Their lambda, in [0, 1): at 1 the loss would have no minimum.
    """

    strength: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.strength < 1:
            raise ValueError(f"Contrastive needs strength in [0, 1), got strength={self.strength}")

    def __call__(self, output: Tensor, x0: Tensor, eps: Tensor, p: Tensor, q: Tensor) -> Tensor:
        if len(output) == 1:
            return output.new_zeros(1)
        elsewhere = p * x0.roll(1, 0) + q * eps.roll(1, 0)  # (B, C, H, W)
        return self.strength * (output - elsewhere).square().flatten(1).mean(1)
