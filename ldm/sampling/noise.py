"""Noise for sampling: each picture's from its own seed, so that its neighbours in the batch do not matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm import randomness


@dataclass(frozen=True, kw_only=True)
class ImageNoise:
    """A ``NoiseSource``: row i of any step depends on ``seeds[i]`` and the step's number only.

    Drawn on the CPU and then moved, so that a seed means the same picture on every kind of device.

    Args:
        seeds: One per picture, (B).
        shape: (C, H, W).
        device: Where the noise goes.
    """

    seeds: Sequence[int]
    shape: tuple[int, int, int]
    device: torch.device | str = "cpu"

    def start(self) -> Tensor:
        """The noise that sampling starts from, (B, C, H, W)."""
        return self._draw("start")

    def __call__(self, step: int) -> Tensor:
        """The noise that a stochastic sampler adds in its step of this number, (B, C, H, W)."""
        return self._draw(step)

    def _draw(self, step: str | int) -> Tensor:
        generators = (randomness.generator(seed, "sampling", step) for seed in self.seeds)
        rows = [torch.randn(self.shape, generator=generator) for generator in generators]
        return torch.stack(rows).to(self.device)
