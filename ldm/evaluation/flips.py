"""Differences of pairs, judged by flipping their signs: the p-value, and the interval that belongs to it.

Were two runs alike, each picture's difference could as well have had the other sign (R. A. Fisher, "The design of
experiments", 1935). The interval holds every shift that this test would not refuse, so it leaves out 0 exactly where
p < 0.05. The bootstrap was tried first: with 50 pictures of which a few make most of the difference, as losses have
it, BCa held the truth in 88 and bootstrap-t in 89 of 100 sets.
"""

from __future__ import annotations

import numpy as np

from ldm.evaluation.bootstrap import NUM_RESAMPLES, Interval, checked, chunks

LEAST = 6  # samples: fewer have too few flips for any p below 0.05
_HALVINGS = 40


def flip_intervals(
    differences: np.ndarray, *, level: float = 0.95, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> tuple[list[Interval], np.ndarray]:
    """The mean of each column of differences (N, K), its interval, and p of "it is zero", two-sided, (K,).

    The same flips serve all columns. The least p is 1 / (num_resamples + 1).

    Raises:
        ValueError: Fewer than ``LEAST`` rows, or values that are not finite.
    """
    differences = checked(differences)
    if len(differences) < LEAST:
        raise ValueError(f"{len(differences)} pairs are too few to judge: give at least {LEAST}")
    generator = np.random.default_rng(seed)
    flipped, ones = [], []  # sums of flipped differences (R, K), and of the flips alone (R, 1)
    for rows in chunks(num_resamples, len(differences)):
        signs = 2.0 * generator.integers(2, size=(rows, len(differences))) - 1
        flipped.append(signs @ differences)
        ones.append(signs.sum(axis=1, keepdims=True))
    a, b = np.concatenate(flipped), np.concatenate(ones)
    total, num = differences.sum(axis=0), len(differences)

    def p(shift: np.ndarray) -> np.ndarray:
        """Of "the mean is shift", (K,) -> (K,). Equal sums in another order of adding count as equal."""
        found = np.abs(total - num * shift) * (1 - 1e-12)
        return (1 + (np.abs(a - shift * b) >= found).sum(axis=0)) / (1 + num_resamples)

    means = total / num
    reach = 4 * np.abs(differences - means).max(axis=0)  # beyond it no shift is believed
    ends = []
    for side in (-1.0, 1.0):
        inner, outer = np.zeros_like(means), np.ones_like(means)  # in parts of the reach
        for _ in range(_HALVINGS):
            middle = (inner + outer) / 2
            believed = p(means + side * middle * reach) > 1 - level
            inner, outer = np.where(believed, middle, inner), np.where(believed, outer, middle)
        ends.append(means + side * outer * reach)
    intervals = [Interval(*map(float, one)) for one in zip(means, *ends, strict=True)]
    return intervals, p(np.zeros_like(means))
