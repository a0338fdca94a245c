"""Sizes of (almost) equally many tokens, each picture in the nearest, and every picture accounted for."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from ldm.data import buckets as module
from ldm.data.buckets import TOO_LONG, TOO_SMALL, Buckets, Square, token_counts


def pictures(num: int = 3000, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Heights and widths as people's pictures have them: mostly 3:2 and 4:3, some very long, some small."""
    random = np.random.default_rng(seed)
    height = random.integers(100, 2000, num)
    return height, np.maximum(1, (height * np.exp(random.normal(0, 0.5, num))).astype(int))


@pytest.mark.parametrize(("side", "multiple_of"), [(512, 16), (1024, 64), (256, 32), (64, 4)])
@pytest.mark.parametrize("slack", [0.0, 0.05])
def test_all_sizes_have_the_squares_tokens_or_hardly_fewer(side: int, multiple_of: int, slack: float) -> None:
    buckets = Buckets(image_size=side, multiple_of=multiple_of, slack=slack, max_ratio=4.0)
    sizes, square = buckets.every(), (side // multiple_of) ** 2
    assert (side, side) in sizes and len(set(sizes)) == len(sizes)
    assert {(width, height) for height, width in sizes} == set(sizes)
    assert all(max(size) <= 4 * min(size) for size in sizes)
    assert all((1 - slack) * square <= tokens <= square for tokens in token_counts(sizes, multiple_of))
    ratios = [width / height for height, width in sizes]
    assert ratios == sorted(ratios)  # from tall to wide
    stepped = Buckets(image_size=side, multiple_of=multiple_of, slack=slack, max_ratio=4.0, step=1.3).every()
    assert set(stepped) <= set(sizes)
    assert all(b[1] / b[0] >= 1.3 * a[1] / a[0] * 0.999 for a, b in pairwise(stepped))


def test_each_picture_goes_where_the_least_of_it_is_cut_off() -> None:
    height, width = pictures()
    buckets = Buckets(image_size=512, multiple_of=32)
    assigned = buckets.assign(height, width)
    kept = np.array(
        [
            [min(w / h / (b / a), b / a / (w / h)) for a, b in assigned.sizes]
            for h, w in zip(height, width, strict=True)
        ]
    )
    chosen = kept[np.arange(len(height)), assigned.bucket]
    np.testing.assert_allclose(chosen, kept.max(axis=1), rtol=1e-9)
    assert assigned.counts().sum() == len(height) and not assigned.left_out


def test_with_several_resolutions_a_picture_takes_the_largest_it_fills() -> None:
    height, width = pictures()
    assigned = Buckets(image_size=[256, 512, 1024], multiple_of=64, step=1.1).assign(height, width)
    single = {side: Buckets(image_size=side, multiple_of=64, step=1.1) for side in (256, 512, 1024)}
    alone = {side: (one.every(), one.assign(height, width)) for side, one in single.items()}
    for i, (h, w) in enumerate(zip(height, width, strict=True)):
        sizes = [alone[side][1].sizes[alone[side][1].bucket[i]] for side in (1024, 512, 256)]
        filled = [size for size in sizes if h >= size[0] and w >= size[1]]
        assert assigned.sizes[assigned.bucket[i]] == (filled or sizes[-1:])[0]


def test_what_is_left_out_is_counted_with_its_reason() -> None:
    height, width = pictures()
    assigned = Buckets(image_size=512, multiple_of=64, max_cut=0.2, enlarge=False).assign(height, width)
    out = assigned.bucket < 0
    assert assigned.left_out.keys() == {TOO_SMALL, TOO_LONG}
    assert sum(assigned.left_out.values()) == out.sum() == len(height) - assigned.counts().sum()
    for h, w, bucket in zip(height[~out], width[~out], assigned.bucket[~out], strict=True):
        a, b = assigned.sizes[bucket]
        assert h >= a and w >= b and min(w / h / (b / a), b / a / (w / h)) >= 0.8 - 1e-9


def test_buckets_with_too_few_are_closed_and_their_pictures_move() -> None:
    height, width = pictures(300)
    everywhere = Buckets(image_size=512, multiple_of=32).assign(height, width)
    assigned = Buckets(image_size=512, multiple_of=32, min_pictures=20).assign(height, width)
    assert everywhere.counts().min() < 20 <= assigned.counts().min()
    assert assigned.counts().sum() == 300
    sizes = [[one.sizes[b] for b in one.bucket] for one in (everywhere, assigned)]
    assert assigned.moved == sum(a != b for a, b in zip(*sizes, strict=True)) > 0 == everywhere.moved
    # What was not closed keeps all that it had.
    for bucket, size in enumerate(assigned.sizes):
        assert set(everywhere.members(everywhere.sizes.index(size))) <= set(assigned.members(bucket))
    alone = Buckets(image_size=512, multiple_of=32, min_pictures=10_000).assign(height, width)
    assert len(alone.sizes) == 1 and alone.counts().tolist() == [300]


def test_validation_takes_the_sizes_of_training() -> None:
    buckets = Buckets(image_size=512, multiple_of=32, min_pictures=50)
    sizes = buckets.assign(*pictures(1000)).sizes
    held_out = buckets.within(sizes).assign(*pictures(40, seed=1))
    assert set(held_out.sizes) <= set(sizes) and held_out.counts().sum() == 40


def test_many_pictures_are_assigned_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    height, width = pictures()
    buckets = Buckets(image_size=[256, 512], multiple_of=64, max_cut=0.3, min_pictures=30)
    whole = buckets.assign(height, width)
    monkeypatch.setattr(module, "CHUNK", 700)
    pieces = buckets.assign(height, width)
    assert np.array_equal(whole.bucket, pieces.bucket) and whole.left_out == pieces.left_out


def test_a_square_takes_all() -> None:
    assigned = Square(image_size=64).assign(*pictures(5))
    assert assigned.sizes == ((64, 64),) and assigned.bucket.tolist() == [0] * 5


def test_sizes_of_ones_own() -> None:
    sizes = [[512, 512], [384, 640], [640, 384]]
    assigned = Buckets(image_size=512, multiple_of=64, sizes=sizes).assign(
        np.array([100, 300]), np.array([100, 520])
    )
    assert [assigned.sizes[b] for b in assigned.bucket] == [(512, 512), (384, 640)]


def test_options_that_are_none_are_named() -> None:
    for options, message in (
        ({"image_size": 500}, "image_size=500 is no multiple of buckets.multiple_of=64"),
        ({"image_size": 512, "max_ratio": 0.5}, "max_ratio=0.5"),
        ({"image_size": 512, "slack": 1.0}, "slack=1.0"),
        ({"image_size": 512, "max_cut": 1.0}, "max_cut=1.0"),
        ({"image_size": []}, "image_size="),
        ({"image_size": [512, 576]}, "too near"),
        ({"image_size": 512, "sizes": [[512, 500]]}, r"\[512, 500\]"),
    ):
        with pytest.raises(ValueError, match=message):
            Buckets(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="image_size is 0"):
        Square(image_size=0)
