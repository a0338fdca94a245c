"""Intervals of paired differences hold what they promise, on laws where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ldm.evaluation.bootstrap import mean_intervals
from ldm.evaluation.flips import flip_intervals

NUM_SETS = 400  # a share of 0.95 has a standard error of 0.011 over them


@pytest.mark.parametrize("tails", ["light", "heavy"])
def test_intervals_cover_at_their_rate_and_leave_0_out_exactly_where_p_is_below_5_percent(tails):
    hits, found = [], []
    for i in range(NUM_SETS):
        generator = np.random.default_rng(i)
        pictures = generator.exponential(size=50) if tails == "heavy" else generator.uniform(1, 2, size=50)
        a, b = (pictures * generator.lognormal(0.0, 0.1, size=50) for _ in range(2))
        [one], [p] = flip_intervals((b - a)[:, None], seed=i, num_resamples=600)
        hits.append(one.low <= 0 <= one.high)
        found.append(p)
        assert one.low < one.value < one.high and hits[-1] == (p > 0.05)
    assert 0.925 <= np.mean(hits) <= 0.975
    assert stats.kstest(found, "uniform").pvalue > 1e-3


def test_it_is_students_interval_where_that_is_exact():
    differences = stats.norm(0.3, 1.0).rvs((80, 1), random_state=np.random.default_rng(0))
    [one], [p] = flip_intervals(differences)
    theirs = stats.ttest_1samp(differences[:, 0], 0.0)
    assert (one.low, one.high) == pytest.approx(tuple(theirs.confidence_interval()), abs=0.02)
    assert p == pytest.approx(theirs.pvalue, abs=0.005)


def test_it_is_the_exact_test_where_all_flips_can_be_counted():
    differences = np.array([[0.3, 1.0], [0.7, -1.0], [0.2, 2.0], [0.5, 0.5], [0.1, -2.5], [0.4, 0.1]])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T  # all 64
    exact = (np.abs(signs @ differences) >= np.abs(differences.sum(axis=0)) - 1e-12).mean(axis=0)
    assert flip_intervals(differences, num_resamples=20_000)[1] == pytest.approx(exact, abs=0.015)


def test_pairs_make_it_as_narrow_as_the_difference_is_steady():
    generator = np.random.default_rng(0)
    pictures = generator.exponential(size=(60, 1))  # some are hard for every model
    a = pictures + 0.01 * generator.standard_normal((60, 1))
    b = pictures + 0.01 * generator.standard_normal((60, 1)) + 0.02
    [difference], [p] = flip_intervals(b - a)
    alone = mean_intervals(np.hstack([a, b]))
    assert 0.01 < difference.low < difference.high < 0.03 and p < 0.001
    assert alone[1].low < alone[0].value, "apart, nobody could tell them"


def test_the_same_seed_gives_the_same_and_chunks_do_not_matter(monkeypatch):
    values = np.random.default_rng(0).normal(size=(25, 3))
    whole = flip_intervals(values, seed=1, num_resamples=500)
    monkeypatch.setattr("ldm.evaluation.bootstrap._CHUNK", 1000)
    again = flip_intervals(values, seed=1, num_resamples=500)
    assert again[0] == whole[0] and (again[1] == whole[1]).all()
    assert flip_intervals(values, seed=2, num_resamples=500)[0] != whole[0]


def test_no_difference_and_too_few_pairs():
    [same, steady], p = flip_intervals(np.array([[0.0, 0.5]] * 8))
    assert (same.low, same.value, same.high, p[0]) == (0.0, 0.0, 0.0, 1.0)
    assert steady.low == steady.high == pytest.approx(0.5)
    with pytest.raises(ValueError, match="5 pairs are too few"):
        flip_intervals(np.ones((5, 1)))
