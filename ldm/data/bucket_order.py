"""Batches from one bucket each: endless, seeded, exact, and entered anywhere at once.

Each bucket has an endless order of its own, every picture once per visit, cut into global batches that straddle the
visits; nothing is dropped and nothing comes more often than its share. In which step which bucket has its turn is
shuffled epoch by epoch: in epoch e a bucket with n pictures has so many turns that after it ``floor((e + 1) n / G)``
batches of G pictures are done, give or take a fixed phase. So the number of steps before an epoch is a sum over
buckets, and the place of a run is found by bisection, wherever it stands and however many processes there are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ldm.data.buckets import Assignment
from ldm.data.mixture import Mixture
from ldm.data.order import WINDOW, Request, Shuffled, Walk, check_shares, permutation, slots_of
from ldm.randomness import address


@dataclass(frozen=True)
class Members:
    """A walk over some samples of a data set.

    Args:
        walk: over as many samples as there are members.
        members: their numbers, (n,).
    """

    walk: Walk
    members: np.ndarray

    @property
    def num_samples(self) -> int:
        return self.walk.num_samples

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        places, visits = self.walk(positions)
        return self.members[places], visits


@dataclass(frozen=True)
class Bucket:
    """The order of one bucket.

    Args:
        number: in the ``Assignment``.
        walk: over its samples.
        share: how many samples an epoch takes of it.
    """

    number: int
    walk: Walk
    share: int


def buckets_of(
    assignment: Assignment,
    counts: Sequence[int],
    *,
    seed: int,
    window: int = WINDOW,
    sources: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
) -> list[Bucket]:
    """The order of every bucket of a data set, or of several in fixed proportions.

    Args:
        assignment: which sample is in which bucket.
        counts: samples in each shard, one after the other.
        seed: of the order.
        window: see ``Shuffled``; all buckets share it, so that they read the same shards at a time.
        sources: number of samples in each source, one after the other; None for one.
        weights: how often each source is drawn, relative to the others; within each bucket, too.
    """
    window = max(1, window // len(assignment.sizes))
    ends = np.cumsum(sources if sources is not None else [len(assignment.bucket)])
    weighted = weights if weights is not None else [1.0] * len(ends)
    shards = np.cumsum(counts)
    held = [
        int((assignment.bucket[begin:end] >= 0).sum()) for begin, end in zip([0, *ends], ends, strict=False)
    ]
    found = []
    for number, (height, width) in enumerate(assignment.sizes):
        members, name = assignment.members(number), f"order of bucket {height}x{width}"
        walks: list[Walk] = []
        rates = []
        for source, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            here = members[(members >= begin) & (members < end)]
            if len(here):
                in_shards = np.diff(np.searchsorted(here, shards), prepend=0)
                purpose = name if len(ends) == 1 else f"{name} of source {source}"
                shuffled = Shuffled(counts=in_shards.tolist(), seed=seed, window=window, purpose=purpose)
                walks.append(Members(shuffled, here))
                rates.append(weighted[source] * len(here) / held[source])
        if len(ends) == 1:
            found.append(Bucket(number, walks[0], len(members)))
        else:
            # Members give numbers in the whole data set, so nothing is to be added to them.
            mixed = Mixture(walks=walks, sizes=[0] * len(walks), weights=rates, seed=address(seed, name))
            share = round(sum(held) * sum(rates) / sum(weighted))
            found.append(Bucket(number, mixed, max(1, share)))
    return found


@dataclass(frozen=True, kw_only=True)
class BucketBatches:
    """Which samples each step takes, all of one bucket; see the top of this file.

    Args:
        buckets: their orders.
        global_batch: samples per step, over all processes.
        rank: of this process, in [0, world_size).
        world_size: how many processes there are; must divide ``global_batch``.
        seed: of the order.
        start: how many samples the run has taken already. Where it is no multiple of ``global_batch``, for that was
            changed, the order goes on with the next whole step.

    Raises:
        ValueError: no bucket, or a batch that cannot be shared equally.
    """

    buckets: Sequence[Bucket]
    global_batch: int
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    start: int = 0

    def __post_init__(self) -> None:
        if not self.buckets:
            raise ValueError("the data set is empty: no picture comes out in any size")
        check_shares(self.global_batch, self.world_size)

    @property
    def slots(self) -> range:
        return slots_of(self.rank, self.world_size, self.global_batch)

    @property
    def num_batches(self) -> int:
        return -(-sum(bucket.share for bucket in self.buckets) // self.global_batch)

    def _done(self, epoch: int) -> list[int]:
        """How many batches of each bucket come before an epoch."""
        # With a phase, so that buckets that have a turn every few epochs do not all have it in the same one.
        return [
            (epoch * one.share + address(self.seed, "phase", one.number) % self.global_batch)
            // self.global_batch
            for one in self.buckets
        ]

    def _epoch_of(self, step: int) -> int:
        """The epoch that a step belongs to."""
        per_epoch = sum(bucket.share for bucket in self.buckets) / self.global_batch
        first = max(0, int((step - len(self.buckets)) / per_epoch) - 1)
        epochs = range(first, int((step + len(self.buckets) + 1) / per_epoch) + 2)
        return epochs[bisect_right(epochs, step, key=lambda epoch: sum(self._done(epoch))) - 1]

    def turns(self, epoch: int) -> np.ndarray:
        """Which of ``buckets`` each step of an epoch takes its samples from."""
        before, after = self._done(epoch), self._done(epoch + 1)
        turns = np.repeat(np.arange(len(before)), np.subtract(after, before))
        return turns[permutation(address(self.seed, "turns of buckets", epoch), len(turns))]

    def __iter__(self) -> Iterator[list[Request]]:
        step = -(-self.start // self.global_batch)
        epoch = self._epoch_of(step)
        skip = step - sum(self._done(epoch))
        while True:
            taken = self._done(epoch)
            for place, turn in enumerate(self.turns(epoch).tolist()):
                if place >= skip:
                    bucket, first = self.buckets[turn], taken[turn] * self.global_batch
                    indices, visits = bucket.walk(
                        np.arange(first + self.slots.start, first + self.slots.stop)
                    )
                    yield [
                        Request(i, v, bucket.number)
                        for i, v in zip(indices.tolist(), visits.tolist(), strict=True)
                    ]
                taken[turn] += 1
            epoch, skip = epoch + 1, 0
