from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ldm.evaluation.significance import (
    NOTHING,
    PICTURES,
    RUNS,
    difference_of_scores,
    holm,
    paired_differences,
)

NUM_SETS = 400


def recipe(generator, *, runs: int, pictures: np.ndarray, effect: float = 0.0, of_seed: float = 0.0):
    """Losses of a recipe's runs: what a picture is, what a seed made of the model, and the rest."""
    return [
        pictures
        + effect
        + of_seed * generator.standard_normal()
        + 0.05 * generator.standard_normal(pictures.shape)
        for _ in range(runs)
    ]


@pytest.mark.parametrize("same_seeds", [True, False])
def test_over_seeds_and_pictures_nothing_is_found_where_only_the_seed_differs(same_seeds):
    found, covered = [], []
    for i in range(NUM_SETS):
        generator = np.random.default_rng(i)
        pictures = generator.exponential(size=(40, 1))
        a, b = (recipe(generator, runs=3, pictures=pictures, of_seed=0.2) for _ in range(2))
        [one] = paired_differences(a, b, same_seeds=same_seeds)
        assert one.over == RUNS
        found.append(one.p < 0.05)
        covered.append(one.low <= 0 <= one.high)
    assert np.mean(found) <= 0.075 and np.mean(covered) == 1 - np.mean(found)


def test_one_run_of_each_would_take_a_seed_for_an_effect():
    generator = np.random.default_rng(0)
    pictures = generator.exponential(size=(40, 1))
    a, b = recipe(generator, runs=2, pictures=pictures, of_seed=0.2)
    [one] = paired_differences([a], [b], same_seeds=False)
    assert one.over == PICTURES and one.p < 0.01, "which is why the interval says what it is over"


def test_an_effect_beyond_what_seeds_do_is_found_by_either_way():
    generator = np.random.default_rng(0)
    pictures = generator.exponential(size=(40, 1))
    a = recipe(generator, runs=3, pictures=pictures, of_seed=0.05)
    b = recipe(generator, runs=3, pictures=pictures, of_seed=0.05, effect=0.5)
    for same_seeds in (True, False):
        [one] = paired_differences(a, b, same_seeds=same_seeds)
        assert one.p < 0.05 and one.low < 0.5 < one.high and one.low > 0
    mirrored = paired_differences(b, a, same_seeds=False)[0]
    assert (mirrored.value, mirrored.low) == pytest.approx((-one.value, -one.high))


def test_without_a_seeds_part_it_is_students_test_of_pairs():
    """Runs that are copies of one another: only pictures vary."""
    generator = np.random.default_rng(0)
    a, b = generator.exponential(size=(2, 30, 1))
    [one] = paired_differences([a, a], [b, b], same_seeds=True)
    theirs = stats.ttest_rel(b[:, 0], a[:, 0])
    assert one.p == pytest.approx(theirs.pvalue)
    assert (one.low, one.high) == pytest.approx(tuple(theirs.confidence_interval()))


def test_without_pictures_part_it_is_students_test_of_runs():
    first, second = [1.0, 1.2, 1.1, 0.9], [1.3, 1.6, 1.2]
    one = difference_of_scores([(x, x, x) for x in first], [(x, x, x) for x in second], same_seeds=False)
    theirs = stats.ttest_ind(second, first)
    assert one.p == pytest.approx(theirs.pvalue)
    assert (one.low, one.high) == pytest.approx(tuple(theirs.confidence_interval()))


def test_scores_known_by_their_intervals_differ_as_normal_numbers_do():
    one = difference_of_scores([(1.0, 0.9, 1.1)], [(1.5, 1.4, 1.6)], same_seeds=False)
    error = 0.1 / stats.norm.ppf(0.975) * 2**0.5
    assert one.p == pytest.approx(2 * stats.norm.sf(0.5 / error)) and one.over == PICTURES
    assert one.high - one.low == pytest.approx(2 * 0.1 * 2**0.5)


def test_where_nothing_tells_how_sure_it_is_nothing_is_said():
    one = difference_of_scores([(1.0, None, None)], [(9.0, 8.0, 10.0)], same_seeds=False)
    assert (one.value, one.low, one.p, one.over) == (8.0, None, None, NOTHING)


def test_the_same_losses_are_no_difference():
    losses = np.random.default_rng(0).exponential(size=(20, 2))
    for runs in (1, 2):
        for one in paired_differences([losses] * runs, [losses] * runs, same_seeds=True):
            assert (one.value, one.low, one.high, one.p) == (0.0, 0.0, 0.0, 1.0)


def test_holm_on_a_case_done_by_hand():
    # sorted: .01 * 4, .02 * 3, .03 * 2, .9 * 1; never falling
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([]) == [] and holm([0.7, 0.8]) == [1.0, 1.0]


def test_holm_keeps_a_false_find_among_many_as_rare_as_one():
    generator = np.random.default_rng(0)
    sets = generator.uniform(size=(2000, 12))
    assert np.mean([min(holm(p)) < 0.05 for p in sets]) <= 0.065
    assert np.mean(sets.min(axis=1) < 0.05) > 0.4, "unadjusted, it would be every second time"
