"""The order is exact: every sample once an epoch, the same for any number of processes, entered anywhere at once."""

from __future__ import annotations

import itertools
import time
from itertools import chain

import numpy as np
import pytest

from ldm.data.mixture import BLOCK, Mixture, quotas
from ldm.data.order import GlobalBatches, Request, Shuffled, Walk, permutation

COUNTS = [10, 0, 7, 6]
NUM = 23
WALKS: dict[str, Walk] = {
    "one window": Shuffled(counts=COUNTS, seed=1),
    "several windows": Shuffled(counts=COUNTS, seed=1, window=5),
    "mixed": Mixture(
        walks=[Shuffled(counts=COUNTS, seed=1), Shuffled(counts=[5], seed=1, purpose="b")],
        sizes=[NUM, 5],
        weights=[2, 1],
    ),
}


def taken(walk: Walk, steps: int, **options: int) -> list[list[Request]]:
    return list(itertools.islice(GlobalBatches(walk=walk, **options), steps))


@pytest.mark.parametrize("window", [1, 2, 5, 22, 23, 1000])
@pytest.mark.parametrize("global_batch", [1, 4, 23, 64])
def test_each_sample_comes_once_per_epoch_and_batches_straddle_epochs(global_batch: int, window: int) -> None:
    walk = Shuffled(counts=COUNTS, seed=1, window=window)
    flat = [*chain(*taken(walk, 6 * NUM // global_batch + 6, global_batch=global_batch))]
    for epoch in range(3):
        one = flat[epoch * NUM : (epoch + 1) * NUM]
        assert sorted(request.sample for request in one) == list(range(NUM))
        assert {request.visit for request in one} == {epoch}


@pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_processes_share_the_same_global_batches(walk: Walk, world_size: int) -> None:
    alone = taken(walk, 9, global_batch=24)
    ranks = [taken(walk, 9, global_batch=24, rank=r, world_size=world_size) for r in range(world_size)]
    assert [[*chain(*step)] for step in zip(*ranks, strict=True)] == alone
    slots = [
        GlobalBatches(walk=walk, global_batch=24, rank=r, world_size=world_size).slots
        for r in range(world_size)
    ]
    assert [*chain(*slots)] == list(range(24))


@pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS)
@pytest.mark.parametrize("start", [0, 12, 24, 36, 1200, 7])
def test_a_restart_goes_on_where_the_run_stood_with_any_batch(walk: Walk, start: int) -> None:
    whole = [*chain(*taken(walk, 120, global_batch=12))]
    assert [*chain(*taken(walk, 4, global_batch=6, start=start))] == whole[start : start + 24]


def test_a_restart_far_away_is_as_fast_as_a_start() -> None:
    walk = Shuffled(counts=[1_000] * 1_000, window=1 << 16)
    mixed = Mixture(walks=[walk, Shuffled(counts=[50])], sizes=[10**6, 50], weights=[1, 1])
    for one in (walk, mixed):
        begun = time.process_time()
        (requests,) = taken(one, 1, global_batch=64, start=10**12 + 7)
        assert time.process_time() - begun < 0.5  # walking there would take days
        assert len(requests) == 64


def test_epochs_seeds_and_purposes_differ() -> None:
    epochs = [taken(Shuffled(counts=[100]), 1, global_batch=100, start=100 * e)[0] for e in range(2)]
    others = [
        taken(Shuffled(counts=[100], **x), 1, global_batch=100)[0] for x in ({"seed": 1}, {"purpose": "x"})
    ]
    orders = {tuple(request.sample for request in one) for one in (*epochs, *others)}
    assert len(orders) == 4


def test_a_window_reads_few_shards_at_a_time_and_mixes_them() -> None:
    walk = Shuffled(counts=[100] * 100, window=1_000)
    shards = np.array([request.sample // 100 for request in taken(walk, 1, global_batch=10_000)[0]])
    for window in shards.reshape(10, 1_000):
        assert len(set(window)) <= 11
        assert len(set(window[:50])) >= 8
    assert sorted(shards[:1_000]) != sorted(shards[1_000:2_000])


def test_a_permutation_is_uniform_and_pinned() -> None:
    """The chi-squared statistic of where the first of eight elements goes, over 4,000 seeds (7 degrees of freedom)."""
    places = np.array(
        [[permutation(seed, 8)[0], np.flatnonzero(permutation(seed, 8) == 7)[0]] for seed in range(4_000)]
    )
    for column in places.T:
        counts = np.bincount(column, minlength=8)
        assert ((counts - 500) ** 2 / 500).sum() < 24.3  # passed by chance once in a thousand
    # The first outputs of splitmix64 at seed 0 are 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F,
    # 0xF88BB8A8724C81EC (Steele et al. 2014, and every implementation since); sorted: third, second, first, fourth.
    assert permutation(0, 4).tolist() == [2, 1, 0, 3]


def test_what_cannot_be_shared_or_is_empty_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size is 10 .* 4 of them"):
        GlobalBatches(walk=WALKS["mixed"], global_batch=10, world_size=4)
    with pytest.raises(ValueError, match="empty"):
        Shuffled(counts=[0, 0])
    with pytest.raises(ValueError, match="window is 0"):
        Shuffled(counts=[1], window=0)


# --- several sources -------------------------------------------------------------------------------------------------


def mixture(*weights: float) -> Mixture:
    sizes = [7, 100, 1_000][: len(weights)]
    walks = [Shuffled(counts=[size], purpose=str(size)) for size in sizes]
    return Mixture(walks=walks, sizes=sizes, weights=weights, seed=3)


def test_sources_keep_their_weights_in_every_stretch() -> None:
    mixed = mixture(1, 2, 7)
    source, _ = mixed.sources(np.arange(3 * BLOCK))
    for block in source.reshape(3, BLOCK):
        np.testing.assert_allclose(np.bincount(block) / BLOCK, [0.1, 0.2, 0.7], atol=1 / BLOCK)
    short = np.bincount(source[:1_000], minlength=3) / 1_000
    np.testing.assert_allclose(short, [0.1, 0.2, 0.7], atol=0.06)


def test_each_source_has_its_own_order_and_visits() -> None:
    mixed = mixture(1, 2, 7)
    requests = [*chain(*taken(mixed, 3, global_batch=BLOCK // 2))]
    for first, size in ((0, 7), (7, 100), (107, 1_000)):
        own = [(r.sample - first, r.visit) for r in requests if first <= r.sample < first + size]
        alone = taken(Shuffled(counts=[size], purpose=str(size)), 1, global_batch=len(own))[0]
        assert own == [(r.sample, r.visit) for r in alone]


def test_what_was_taken_of_each_source_is_known_at_any_position() -> None:
    mixed = mixture(1, 2, 7)
    source, place = mixed.sources(np.arange(2 * BLOCK))
    for position in (0, 1, 999, BLOCK, 2 * BLOCK - 5):
        assert mixed.taken(position) == np.bincount(source[:position], minlength=3).tolist()
        assert mixed.taken(position)[source[position]] == place[position]


def test_weights_are_shared_out_whole_and_refused_where_they_vanish() -> None:
    assert quotas([1, 1, 1]).tolist() == [21_846, 21_845, 21_845]
    assert quotas([0.3]).tolist() == [BLOCK]
    for wrong in ([1, 0], [1, -1], [1, float("nan")], [1, float("inf")]):
        with pytest.raises(ValueError, match="positive"):
            quotas(wrong)
    with pytest.raises(ValueError, match="less than one sample"):
        quotas([1, 1e-9])
