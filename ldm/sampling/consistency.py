"""Sampling with networks that were distilled to jump to the data at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ldm.sampling.walk import LinearSampler, Row, Step


@dataclass(frozen=True, kw_only=True)
class LCM(LinearSampler):
    """Consistency sampling in several steps (Song et al. 2023, 2303.01469, algorithm 1; Luo et al. 2023, 2310.04378).

    Each step jumps to the data, ``f = c_skip * x + c_out * x0``, and goes back to the next time with noise that is
    wholly new. Made for networks distilled for it, in 1 to 8 steps; with any other network the pictures are blurred.

    With d = sigma_data and s = time_scale * t, c_skip = d^2 / (s^2 + d^2) and c_out = s / sqrt(s^2 + d^2) make f the
    identity at t = 0, as the distillation had it. Where LCM stops, t > 0.02, c_skip is below 1e-5.

    Args:
        sigma_data: Of the skip.
        time_scale: Of the skip: 1000 timesteps, times the factor 10 of published models.
    """

    sigma_data: float = 0.5
    time_scale: float = 10_000.0

    def __post_init__(self) -> None:
        if not (self.sigma_data > 0 and self.time_scale > 0):
            raise ValueError(
                f"LCM needs sigma_data > 0 and time_scale > 0, got {self.sigma_data} and {self.time_scale}"
            )

    def rows(self, steps: Sequence[Step]) -> list[Row]:
        return [self._row(step) for step in steps]

    def _row(self, step: Step) -> Row:
        s, d = self.time_scale * step.t, self.sigma_data
        c_skip, c_out = d**2 / (s**2 + d**2), s / (s**2 + d**2) ** 0.5
        return Row(x=step.alpha1 * c_skip, x0=(step.alpha1 * c_out,), noise=step.sigma1)
