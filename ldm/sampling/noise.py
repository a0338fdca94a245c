"""Noise for sampling: each picture's from its own seed, so that its neighbours in the batch do not matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm import randomness
from ldm.sampling.editing import slerp


@dataclass(frozen=True, kw_only=True)
class ImageNoise:
    """A ``NoiseSource``: row i of any draw depends on ``seeds[i]``, ``turned[i]`` and the draw's name only.

    Drawn on the CPU and then moved, so that a seed means the same picture on every kind of device.

    Args:
        seeds: One per picture, (B).
        shape: (C, H, W).
        device: Where the noise goes.
        turned: For each picture a second seed and how far all its noise is turned towards that seed's, in [0, 1], by
            spherical interpolation; or None. None for no picture.
    """

    seeds: Sequence[int]
    shape: tuple[int, int, int]
    device: torch.device | str = "cpu"
    turned: Sequence[tuple[int, float] | None] | None = None

    def start(self) -> Tensor:
        """The noise that sampling starts from, (B, C, H, W)."""
        return self.draw("start")

    def __call__(self, step: int) -> Tensor:
        """The noise that a stochastic sampler adds in its step of this number, (B, C, H, W)."""
        return self.draw(step)

    def draw(self, name: str | int) -> Tensor:
        """The noise of this name, (B, C, H, W): always the same."""
        turned = self.turned or [None] * len(self.seeds)
        rows = [self._row(name, seed, turn) for seed, turn in zip(self.seeds, turned, strict=True)]
        return torch.stack(rows).to(self.device)

    def _row(self, name: str | int, seed: int, turn: tuple[int, float] | None) -> Tensor:
        row = torch.randn(self.shape, generator=randomness.generator(seed, "sampling", name))
        if turn is None:
            return row
        other, fraction = turn
        towards = torch.randn(self.shape, generator=randomness.generator(other, "sampling", name))
        return slerp(row, towards, fraction)
