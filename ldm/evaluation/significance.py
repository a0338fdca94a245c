"""Is one recipe better than another? Differences with intervals over pictures and over training seeds.

Two things vary. Other pictures would give another score: that is seen within one run, over its pictures. Another
training seed would give another model: that is seen only where a recipe was trained several times. With one run of
each recipe an interval says that these two models differ, not that their recipes do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ldm.evaluation.flips import LEAST, flip_intervals
from ldm.evaluation.intervals import Z_95

PICTURES = "pictures"
RUNS = "pictures and training seeds"
NOTHING = "nothing"


@dataclass(frozen=True)
class Difference:
    """Second less first.

    Attributes:
        low, high: Ends of the 95 % interval; None where nothing tells how sure the difference is.
        p: Of "there is no difference", two-sided, for this comparison alone; None where there is no interval.
        over: What the interval is over.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    over: str


def paired_differences(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], *, same_seeds: bool, seed: int = 0
) -> list[Difference]:
    """Mean differences of the same samples, one for each column.

    Args:
        first: For each run of one recipe (N, K): N samples, the same in all runs and in the same order.
        second: The same of the other recipe.
        same_seeds: The runs of both are of the same training seeds in the same order, so that they are pairs as well.
        seed: Of the flips, which make interval and p where there is one run of each.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)  # (runs, N, K)
    rows = b.mean(axis=0) - a.mean(axis=0)  # (N, K)
    if len(a) == len(b) == 1:
        if len(rows) < LEAST:
            return [Difference(float(value), None, None, None, NOTHING) for value in rows.mean(axis=0)]
        intervals, p = flip_intervals(rows, seed=seed)
        return [
            Difference(one.value, one.low, one.high, float(q), PICTURES)
            for one, q in zip(intervals, p, strict=True)
        ]
    of_pictures = rows.var(axis=0, ddof=1) / len(rows)  # (K,)
    of_seeds, freedom = _seed_variance(a.mean(axis=1), b.mean(axis=1), same_seeds=same_seeds)
    return [
        _by_student(float(value), float(v), len(rows) - 1, float(w), freedom)
        for value, v, w in zip(rows.mean(axis=0), of_pictures, of_seeds, strict=True)
    ]


def difference_of_scores(
    first: Sequence[tuple[float, float | None, float | None]],
    second: Sequence[tuple[float, float | None, float | None]],
    *,
    same_seeds: bool,
) -> Difference:
    """The difference of scores that are known by value and 95 % interval only: (value, low, high) for each run.

    Their errors are taken as independent and normal, which is too wide where the same noise made both.
    """
    value = float(np.mean([x[0] for x in second]) - np.mean([x[0] for x in first]))
    of_pictures = 0.0
    for group in (first, second):
        for _, low, high in group:
            if low is not None and high is not None:
                of_pictures += ((high - low) / (2 * Z_95) / len(group)) ** 2
            elif len(first) == len(second) == 1:
                return Difference(value, None, None, None, NOTHING)
            # else the spread over runs has to stand for it
    if len(first) == len(second) == 1:
        return _by_student(value, of_pictures, math.inf, 0.0, math.inf)
    means = [np.array([[x[0]] for x in group]) for group in (first, second)]  # (runs, 1)
    of_seeds, freedom = _seed_variance(*means, same_seeds=same_seeds)
    return _by_student(value, of_pictures, math.inf, float(of_seeds[0]), freedom)


def holm(p: Sequence[float]) -> list[float]:
    """p-values of several comparisons, adjusted so that one false find among all of them stays as rare as one alone.

    S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979).
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, least = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = least
    return adjusted


def _seed_variance(a: np.ndarray, b: np.ndarray, *, same_seeds: bool) -> tuple[np.ndarray, int]:
    """Variance of the difference of means over training seeds, (K,), and its degrees of freedom; a, b (runs, K)."""
    if same_seeds and len(a) == len(b) > 1:
        return (b - a).var(axis=0, ddof=1) / len(a), len(a) - 1
    freedom = len(a) + len(b) - 2
    pooled = (
        sum(((x - x.mean(axis=0)) ** 2).sum(axis=0) for x in (a, b)) / freedom
    )  # (K,), one spread for both
    return np.asarray(pooled * (1 / len(a) + 1 / len(b))), freedom


def _by_student(value: float, v: float, v_freedom: float, w: float, w_freedom: float) -> Difference:
    """From two independent variances, each with its degrees of freedom.

    The degrees of freedom of their sum: F. E. Satterthwaite, Biometrics Bulletin 2 (1946).
    """
    total, over = v + w, PICTURES if math.isinf(w_freedom) else RUNS
    if total == 0:
        return Difference(value, value, value, 1.0 if value == 0 else 0.0, over)
    denominator = v**2 / v_freedom + w**2 / w_freedom
    freedom = total**2 / denominator if denominator else math.inf
    half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(total)
    p = float(2 * stats.t.sf(abs(value) / math.sqrt(total), freedom))
    return Difference(value, value - half, value + half, p, over)
