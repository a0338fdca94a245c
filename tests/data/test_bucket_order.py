"""Batches of one bucket each: the same on any number of processes, after any restart, and everybody has their turn."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from itertools import chain

import numpy as np
import pytest

from ldm.data.bucket_order import Bucket, BucketBatches, buckets_of
from ldm.data.buckets import Assignment

SIZES = ((64, 64), (48, 80), (80, 48), (32, 96))
COUNTS = (50, 31, 7, 2)  # the last is smaller than a batch
BATCH = 12


def assignment(counts: tuple[int, ...] = COUNTS, *, left_out: int = 3) -> Assignment:
    bucket = np.repeat([*range(len(counts)), -1], [*counts, left_out])
    return Assignment(SIZES[: len(counts)], np.random.default_rng(0).permutation(bucket).astype(np.int16))


ASSIGNED = assignment()
SHARDS = (30, 5, 33, 25)


def orders(assigned: Assignment, shards: tuple[int, ...] | None = None, *, seed: int = 0) -> list[Bucket]:
    return buckets_of(assigned, shards or [len(assigned.bucket)], seed=seed)


def taken(num: int, **options: int) -> list[list[tuple[int, int]]]:
    buckets = orders(ASSIGNED, SHARDS, seed=options.get("seed", 0))
    order = BucketBatches(buckets=buckets, **{"global_batch": BATCH, **options})
    return [[(i, v) for i, v, _ in step] for step in itertools.islice(order, num)]


def test_a_step_takes_its_pictures_from_one_bucket() -> None:
    for step in taken(100):
        assert len(step) == BATCH and len({ASSIGNED.bucket[i] for i, _ in step}) == 1
    order = BucketBatches(buckets=orders(ASSIGNED), global_batch=BATCH)
    for step in itertools.islice(order, 100):
        assert all(ASSIGNED.bucket[i] == bucket for i, _, bucket in step)


def test_every_picture_has_its_turn_at_each_visit_and_none_is_ahead() -> None:
    steps = taken(400)
    flat = list(chain(*steps))
    assert len(set(flat)) == len(flat)  # never the same visit twice
    visits = Counter(i for i, _ in flat)
    assert set(visits) == set(np.flatnonzero(ASSIGNED.bucket >= 0))
    for bucket, count in enumerate(COUNTS):
        members = ASSIGNED.members(bucket).tolist()
        seen = [visits[i] for i in members]
        assert max(seen) - min(seen) <= 1
        for i in members:
            assert sorted(visit for j, visit in flat if j == i) == list(range(visits[i]))
        # As often as its share of all pictures says, to a batch at the most.
        batches = sum(ASSIGNED.bucket[step[0][0]] == bucket for step in steps)
        assert abs(batches - len(steps) * count / sum(COUNTS)) < 1 + count / BATCH


@pytest.mark.parametrize("world_size", [2, 3, 4, 6, 12])
def test_processes_share_the_same_global_batches(world_size: int) -> None:
    ranks = [taken(50, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [list(chain(*step)) for step in zip(*ranks, strict=True)] == taken(50)


def test_a_restart_goes_on_where_the_run_stood() -> None:
    whole = taken(330)
    for step in range(0, 320, 7):
        assert taken(5, start=step * BATCH) == whole[step : step + 5]
    assert taken(3, start=100 * BATCH + 1) == whole[101:104]


def test_buckets_and_epochs_are_mixed() -> None:
    order = BucketBatches(buckets=orders(assignment((400, 400), left_out=0)), global_batch=4)
    first, second = order.turns(0).tolist(), order.turns(1).tolist()
    assert Counter(first) == Counter(second) == {0: 100, 1: 100} and first != second
    changes = sum(a != b for a, b in itertools.pairwise(first))
    assert 70 < changes < 130
    assert taken(9) != taken(9, seed=1)


def test_a_far_place_is_found_at_once() -> None:
    start = time.perf_counter()
    far = taken(2, start=10**12 * BATCH)
    assert time.perf_counter() - start < 0.5
    assert far == taken(3, start=(10**12 - 1) * BATCH)[1:]


@pytest.mark.parametrize("counts", [(1,), (1, 1, 1), (3, 200)])
def test_small_data_sets_and_large_batches_work_too(counts: tuple[int, ...]) -> None:
    buckets = orders(assignment(counts))
    whole = list(itertools.islice(BucketBatches(buckets=buckets, global_batch=64), 60))
    for step in (0, 1, 13, 40):
        resumed = BucketBatches(buckets=buckets, global_batch=64, start=64 * step)
        assert list(itertools.islice(resumed, 5)) == whole[step : step + 5]
    flat = [request for step in whole for request in step]
    assert len(set(flat)) == len(flat)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size is 10 .* 4 of them"):
        BucketBatches(buckets=orders(ASSIGNED), global_batch=10, world_size=4)
    with pytest.raises(ValueError, match="empty"):
        BucketBatches(buckets=[], global_batch=4)


def test_sources_keep_their_proportions_in_every_bucket() -> None:
    """Two sources, the second three times as often; in both, buckets hold different shares."""
    bucket = np.repeat([0, 1, 0, 1, -1], [60, 20, 30, 90, 10]).astype(np.int16)
    assigned, first = Assignment(SIZES[:2], bucket), 80
    buckets = buckets_of(assigned, [50, 30, 130], seed=0, sources=[80, 130], weights=[1.0, 3.0])
    steps = list(itertools.islice(BucketBatches(buckets=buckets, global_batch=8), 6000))
    flat = [request for step in steps for request in step]
    assert all(bucket[i] == number for i, _, number in flat)
    shares = Counter((i >= first, number) for i, _, number in flat)
    expected = {(False, 0): 60 / 80, (False, 1): 20 / 80, (True, 0): 3 * 30 / 120, (True, 1): 3 * 90 / 120}
    for which, share in expected.items():
        assert abs(shares[which] / len(flat) - share / 4) < 0.01
    assert len({(i, visit) for i, visit, _ in flat}) == len(flat)
    visits = Counter(i for i, _, _ in flat)
    assert max(visits[i] for i in range(60)) - min(visits[i] for i in range(60)) <= 1
    resumed = BucketBatches(buckets=buckets, global_batch=8, start=8 * 1234)
    assert list(itertools.islice(resumed, 20)) == steps[1234:1254]


def test_a_large_data_set_is_read_shard_by_shard() -> None:
    """With a small window, a step's samples come from few of many shards, in every bucket."""
    bucket = np.random.default_rng(0).integers(0, 2, 100 * 100).astype(np.int16)
    buckets = buckets_of(Assignment(SIZES[:2], bucket), [100] * 100, seed=0, window=1000)
    for step in itertools.islice(BucketBatches(buckets=buckets, global_batch=64), 30):
        assert len({i // 100 for i, _, _ in step}) <= 24  # of 100; two windows at the most
