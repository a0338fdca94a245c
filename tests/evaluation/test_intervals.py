from __future__ import annotations

import pytest

from ldm.evaluation.intervals import wilson


def test_the_interval_holds_the_share_and_stays_within_0_and_1():
    for num in (1, 7, 500):
        for right in range(num + 1):
            low, high = wilson(right, num)
            assert 0 <= low <= right / num <= high <= 1


def test_its_ends_are_where_the_score_test_just_refuses():
    # The definition: p is in the interval when |share - p| <= z * sqrt(p * (1 - p) / n).
    num, right, z = 250, 230, 1.7
    for p in wilson(right, num, z):
        assert abs(right / num - p) == pytest.approx(z * (p * (1 - p) / num) ** 0.5)


def test_right_and_wrong_mirror_each_other():
    low, high = wilson(13, 40)
    assert wilson(27, 40) == pytest.approx((1 - high, 1 - low))


def test_nothing_counted_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_more_right_than_counted_is_refused():
    with pytest.raises(ValueError, match="5 right of 4"):
        wilson(5, 4)
