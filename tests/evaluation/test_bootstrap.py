"""Intervals hold what they promise: they miss the truth in 5 of 100 data sets, on laws where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ldm.evaluation.bootstrap import mean_interval, mean_intervals, statistic_interval

LAWS = {"normal": (stats.norm(3.0, 2.0), 0.93), "skewed": (stats.expon(scale=2.0), 0.91)}
NUM_SETS = 400  # a share of 0.95 has a standard error of 0.011 over them


def coverage(make, truth: float) -> float:
    hits = [one.low <= truth <= one.high for one in map(make, range(NUM_SETS))]
    return float(np.mean(hits))


@pytest.mark.parametrize("name", LAWS)
def test_bca_intervals_of_a_mean_cover_at_their_rate(name):
    law, least = LAWS[name]

    def make(i: int):
        values = law.rvs(40, random_state=np.random.default_rng(i))
        return mean_interval(values, seed=i, num_resamples=1000)

    # With 40 samples the bootstrap is known to be a little too narrow, the more so the longer the tail.
    assert least <= coverage(make, law.mean()) <= 0.975


def test_bca_reaches_further_into_the_long_tail_than_plain_percentiles():
    values = stats.expon.rvs(size=30, random_state=np.random.default_rng(0))
    bca = mean_interval(values)
    plain = statistic_interval(lambda rows: float(values[rows].mean()), len(values), num_resamples=4000)
    assert bca.value == pytest.approx(plain.value)
    assert bca.high > plain.high and bca.low > plain.low


def test_bca_is_scipys():
    values = stats.gamma(1.5).rvs(50, random_state=np.random.default_rng(3))
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=0).confidence_interval
    ours = mean_interval(values, num_resamples=20_000)
    spread = values.std() / len(values) ** 0.5
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.05 * spread)


def test_percentile_intervals_of_any_statistic_cover_at_their_rate():
    def make(i: int):
        values = stats.norm(1.0, 1.0).rvs(60, random_state=np.random.default_rng(i))
        return statistic_interval(lambda rows: float(np.median(values[rows])), 60, seed=i, num_resamples=300)

    assert 0.91 <= coverage(make, 1.0) <= 0.985


def test_the_same_seed_gives_the_same_interval_and_chunks_do_not_matter(monkeypatch):
    values = np.random.default_rng(0).exponential(size=(25, 3))
    whole = mean_intervals(values, seed=1, num_resamples=500)
    assert mean_intervals(values, seed=1, num_resamples=500) == whole != mean_intervals(values, seed=2)
    monkeypatch.setattr("ldm.evaluation.bootstrap._CHUNK", 1000)
    for piecewise, one in zip(mean_intervals(values, seed=1, num_resamples=500), whole, strict=True):
        assert (piecewise.low, piecewise.high) == pytest.approx((one.low, one.high))


def test_what_has_no_spread_has_no_width_and_one_sample_has_no_interval():
    assert mean_interval(np.full(5, 0.1)) == mean_interval(np.full(9, 0.1))
    with pytest.raises(ValueError, match="at least 2 samples"):
        mean_interval(np.ones(1))
    with pytest.raises(ValueError, match="1 of 4 values are not finite"):
        mean_interval(np.array([1.0, np.nan, 2.0, 3.0]))
