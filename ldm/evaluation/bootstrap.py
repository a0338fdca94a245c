"""Bootstrap intervals: how much a number would move if other pictures had been drawn. Seeded, so that they repeat.

B. Efron, "Better bootstrap confidence intervals", JASA 82 (1987); B. Efron and R. Tibshirani, "An introduction to the
bootstrap" (1993), chapters 13 and 14.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

NUM_RESAMPLES = 10_000
_CHUNK = 4_000_000  # counts held at a time


@dataclass(frozen=True)
class Interval:
    """A number and the ends of its interval."""

    value: float
    low: float
    high: float


def mean_interval(
    values: np.ndarray, *, level: float = 0.95, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Interval:
    """The mean of values (N,) and its BCa interval. For differences of pairs there is ``flips.py``."""
    return mean_intervals(
        np.asarray(values, np.float64)[:, None], level=level, seed=seed, num_resamples=num_resamples
    )[0]


def mean_intervals(
    values: np.ndarray, *, level: float = 0.95, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> list[Interval]:
    """The mean of each column of values (N, K) and its BCa interval, rows resampled whole.

    BCa moves the percentiles for bias and for skew (Efron 1987, eq. 2.3, 6.5 and 7.3), so that losses with a long tail
    keep their coverage, to second order in 1/sqrt(N).

    Raises:
        ValueError: Fewer than two rows, or values that are not finite.
    """
    values = checked(values)
    means = values.mean(axis=0)  # (K,)
    centred = values - means
    drawn = np.concatenate([counts @ values for counts in _counts(len(values), num_resamples, seed)])
    drawn /= len(values)  # (R, K)
    spread = (centred**2).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        skew = np.where(spread > 0, (centred**3).sum(axis=0) / (6 * spread**1.5), 0.0)  # (K,)
    # Ties count half: a column of few distinct values would else seem biased.
    below = ((drawn < means).mean(axis=0) + (drawn <= means).mean(axis=0)) / 2
    bias = ndtri(np.clip(below, 1 / num_resamples, 1 - 1 / num_resamples))
    ends = []
    for z in (ndtri((1 - level) / 2), ndtri((1 + level) / 2)):
        moved = ndtr(bias + (bias + z) / (1 - skew * (bias + z)))
        ends.append([float(np.quantile(drawn[:, k], moved[k])) for k in range(values.shape[1])])
    return [
        Interval(float(mean), low, high)
        if scale > 0
        else Interval(float(mean), float(mean), float(mean))  # constant: rounding would move the ends off it
        for mean, scale, low, high in zip(means, spread, *ends, strict=True)
    ]


def statistic_interval(
    statistic: Callable[[np.ndarray], float],
    num: int,
    *,
    level: float = 0.95,
    seed: int = 0,
    num_resamples: int = 1000,
) -> Interval:
    """Any statistic of ``num`` samples and its percentile interval.

    Args:
        statistic: Row numbers (num,), some drawn several times -> the number.
    """
    generator = np.random.default_rng(seed)
    drawn = [statistic(generator.integers(num, size=num)) for _ in range(num_resamples)]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(np.arange(num))), float(low), float(high))


def checked(values: np.ndarray) -> np.ndarray:
    """values (N, K) as float64, if something can be said of them."""
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(
            f"an interval needs (N, K) values of at least 2 samples, these have the shape {values.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {values.size} values are not finite")
    return values


def _counts(num: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of ``num`` samples is drawn in each resample: pieces of (num_resamples, num) float64."""
    generator = np.random.default_rng(seed)
    for rows in chunks(num_resamples, num):
        drawn = generator.integers(num, size=(rows, num)) + num * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * num).reshape(rows, num).astype(np.float64)


def chunks(num_resamples: int, num: int) -> Iterator[int]:
    """Numbers of resamples of ``num`` samples that fit into memory, ``num_resamples`` in all."""
    size = max(1, _CHUNK // num)
    for first in range(0, num_resamples, size):
        yield min(size, num_resamples - first)
