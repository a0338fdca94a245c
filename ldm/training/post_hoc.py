"""Power-function averages, and any other of them made after training from the few that were kept.

Karras et al. 2023, "Analyzing and improving the training dynamics of diffusion models" (2312.02696), section 3.1 and
appendix C. The average at step t weights the weights of step k by the power function k^gamma, whose width relative to t
is sigma_rel. A snapshot is such an average; a weighted sum of snapshots is one whose profile is the sum of theirs, so
the profile wanted is fitted by least squares and the weights come along.

The recurrence (1 - beta) with beta = (1 - 1/t)^(gamma + 1) gives step k the weight (k^(gamma+1) - (k-1)^(gamma+1)) /
t^(gamma+1): exactly the continuous profile's integral over [k - 1, k]. So the fit of continuous profiles below holds
for the discrete averages as well, however few the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LARGEST = 0.2886  # sigma_rel of gamma = 0, the mean over all of training, is 1 / sqrt(12)


@dataclass(frozen=True)
class Profile:
    """A power-function average: which one, and when.

    Args:
        step: Optimizer steps until then, at least 1.
        gamma: The exponent.
    """

    step: float
    gamma: float


def gamma_of(sigma_rel: float) -> float:
    """The exponent of a relative width: the largest root of a cubic (appendix C).

    Raises:
        ValueError: No power function with gamma >= 0 is so wide, or the width is not positive.
    """
    if not 0 < sigma_rel <= LARGEST:
        raise ValueError(
            f"sigma_rel={sigma_rel} must lie in (0, {LARGEST}]: the width of a power function relative to the length "
            f"of training, e.g. 0.05 to 0.2"
        )
    t = sigma_rel**-2  # sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def sigma_rel_of(gamma: float) -> float:
    """The width of the profile relative to the length of training: its standard deviation over t."""
    return float((gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5)


def share(step: int, gamma: float) -> float:
    """How far the average moves towards the weights of step ``step`` = 1, 2, ...: 1 - beta of section 3.1."""
    return 1 - (1 - 1 / step) ** (gamma + 1)


def inner_products(first: Sequence[Profile], second: Sequence[Profile]) -> np.ndarray:
    """Integrals of the products of profiles, (len(first), len(second)): appendix C.

    With ta <= tb: integral over [0, ta] = (ga + 1) (gb + 1) / (ga + gb + 1) * (ta / tb)^gb / tb.
    """
    ta, ga = (np.array([[getattr(p, name)] for p in first], dtype=float) for name in ("step", "gamma"))
    tb, gb = (np.array([[getattr(p, name) for p in second]], dtype=float) for name in ("step", "gamma"))
    later, of_later = np.maximum(ta, tb), np.where(ta < tb, gb, ga)
    ratio = np.minimum(ta, tb) / later
    return (ga + 1) * (gb + 1) / (ga + gb + 1) * ratio**of_later / later


def coefficients(kept: Sequence[Profile], wanted: Profile) -> tuple[np.ndarray, float]:
    """Weights of the kept profiles whose sum is nearest to the wanted one, and how far it is from it.

    Returns:
        (len(kept),) and the root of the squared difference's integral, relative to the wanted profile's.
    """
    gram = inner_products(kept, kept)
    right = inner_products(kept, [wanted])[:, 0]
    scale = 1 / np.sqrt(np.diag(gram))  # profiles of length one: the same problem, better conditioned
    solved = np.linalg.lstsq(gram * np.outer(scale, scale), right * scale, rcond=1e-12)[0] * scale
    own = inner_products([wanted], [wanted])[0, 0]
    squared = own - 2 * solved @ right + solved @ gram @ solved
    return solved, float(np.sqrt(max(0.0, squared) / own))
