"""Euler's method with fresh noise in every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ldm.sampling.samplers import renewed
from ldm.sampling.walk import LinearSampler, Row, Step


@dataclass(frozen=True, kw_only=True)
class EulerAncestral(LinearSampler):
    """Euler's step to a noise below the next one, then noise up to it (Crowson's k-diffusion, "euler_a").

    With s = sigma / alpha it goes to s_down = sqrt(s1^2 - s_up^2) and adds noise of s_up = eta s1 sqrt(1 - s1^2 / s^2).
    As s1 / s is the ratio of ``walk.Step``, this is DDIM with the same eta, by another road. It stands here under the
    name that people look for, with the eta they expect, and works where s is infinite.

    Args:
        eta: 0 is ``Euler``, 1 draws as much noise anew as DDPM.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"EulerAncestral needs eta in [0, 1], got eta={self.eta}")

    def rows(self, steps: Sequence[Step]) -> list[Row]:
        return [renewed(step, self.eta) for step in steps]
