"""Which samples each step takes: an exact order with random access.

A run's whole position is (fingerprint of the data, seed, number of samples taken so far, over all processes). A
``Walk`` says which sample stands at any position, without looking at the ones before it; an ``Order`` cuts a walk into
global batches and gives each process its slice. So nothing about the samples of a step depends on how many processes
and workers there are, and a restart begins anywhere in no time.

The permutations are made of 64-bit integer arithmetic and a sort: the same for every version of every library.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from ldm.randomness import address

WINDOW = 1 << 20
"""Samples that are shuffled among each other: 4 MB of memory, and about a hundred shards that are read at a time."""


class Request(NamedTuple):
    """One sample that a step takes."""

    sample: int  # its number in the data set
    visit: int  # how often it was taken before
    bucket: int = 0  # which of the data set's picture sizes it is brought to


class Walk(Protocol):
    """An endless sequence of samples with random access."""

    @property
    def num_samples(self) -> int:
        """How many positions an epoch has."""
        ...

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """positions (n,) int64 -> (indices (n,), visits (n,)), both int64."""
        ...


class Order(Protocol):
    """What a loader walks along: for each step, the samples that this process takes. Endless."""

    @property
    def slots(self) -> range:
        """This process's places in the global batch."""
        ...

    @property
    def global_batch(self) -> int:
        """Samples per step, over all processes."""
        ...

    @property
    def num_batches(self) -> int:
        """How many steps an epoch takes; where the batch does not divide it, the last one reaches into the next."""
        ...

    def __iter__(self) -> Iterator[list[Request]]: ...


@dataclass(frozen=True, kw_only=True)
class Shuffled:
    """Each sample once per epoch, in another order each epoch.

    Two levels: the shards are shuffled, and then all samples within a window of consecutive ones. With at most
    ``window`` samples that is a perfect shuffle; with more, samples of about ``window`` / (samples per shard) shards at
    a time are mixed, so that reading stays within them.

    Args:
        counts: samples in each shard, in the order of the index.
        seed: of the order.
        window: samples that are shuffled among each other.
        purpose: tells apart walks with the same seed.
    """

    counts: Sequence[int]
    seed: int = 0
    window: int = WINDOW
    purpose: str = "order"
    _counts: np.ndarray = field(init=False, repr=False, compare=False)
    _starts: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        counts = np.asarray(self.counts, dtype=np.int64)
        if counts.sum() < 1:
            raise ValueError("the data set is empty")
        if self.window < 1:
            raise ValueError(f"window is {self.window}; it is a number of samples, 1 or more")
        object.__setattr__(self, "_counts", counts)
        object.__setattr__(self, "_starts", np.cumsum(counts) - counts)

    @property
    def num_samples(self) -> int:
        return int(self._counts.sum())

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        visits, places = np.divmod(np.asarray(positions, dtype=np.int64), self.num_samples)
        indices = np.empty_like(places)
        for visit in np.unique(visits).tolist():
            of_visit = visits == visit
            indices[of_visit] = self._of_epoch(visit, places[of_visit])
        return indices, visits

    def _of_epoch(self, visit: int, places: np.ndarray) -> np.ndarray:
        """Places in an epoch (n,) -> samples (n,)."""
        num = self.num_samples
        num_windows = -(-num // self.window)
        bounds = np.arange(num_windows + 1, dtype=np.int64) * num // num_windows  # of about equal size
        inside = np.searchsorted(bounds, places, side="right") - 1
        mixed = np.empty_like(places)
        for window in np.unique(inside).tolist():
            of_window, begin = inside == window, int(bounds[window])
            order = permutation(
                address(self.seed, self.purpose, visit, window), int(bounds[window + 1]) - begin
            )
            mixed[of_window] = begin + order[places[of_window] - begin]
        shards = permutation(address(self.seed, self.purpose, visit, "shards"), len(self._counts))
        ends = np.cumsum(self._counts[shards])
        which = np.searchsorted(ends, mixed, side="right")  # the place of each one's shard in the epoch
        shard = shards[which]
        return self._starts[shard] + mixed - (ends[which] - self._counts[shard])


@dataclass(frozen=True, kw_only=True)
class GlobalBatches:
    """A walk cut by place in the global batch: batches straddle epochs, nothing is dropped.

    A process takes its contiguous slice of each global batch, so the number of processes changes nothing about the
    samples of a step, and neither does a restart.

    Args:
        walk: says which sample stands where.
        global_batch: samples per step, over all processes.
        rank: of this process, in [0, world_size).
        world_size: how many processes there are; must divide ``global_batch``.
        start: how many samples the run has taken already; any number.
    """

    walk: Walk
    global_batch: int
    rank: int = 0
    world_size: int = 1
    start: int = 0

    def __post_init__(self) -> None:
        check_shares(self.global_batch, self.world_size)

    @property
    def slots(self) -> range:
        return slots_of(self.rank, self.world_size, self.global_batch)

    @property
    def num_batches(self) -> int:
        return -(-self.walk.num_samples // self.global_batch)

    def __iter__(self) -> Iterator[list[Request]]:
        first = self.start
        while True:
            indices, visits = self.walk(np.arange(first + self.slots.start, first + self.slots.stop))
            yield list(map(Request, indices.tolist(), visits.tolist()))
            first += self.global_batch


def slots_of(rank: int, world_size: int, global_batch: int) -> range:
    """The places of a process in each global batch."""
    share = global_batch // world_size
    return range(rank * share, (rank + 1) * share)


def check_shares(global_batch: int, world_size: int) -> None:
    """Raises ValueError where a global batch cannot be shared equally."""
    if global_batch < 1 or global_batch % world_size:
        raise ValueError(
            f"batch_size is {global_batch} over all processes, but there are {world_size} of them to share it "
            f"equally; choose a multiple"
        )


@lru_cache(maxsize=256)  # with buckets, two for each of them
def permutation(seed: int, num: int) -> np.ndarray:
    """A permutation of range(num): the numbers sorted by their hashes. (num,) uint32, not to be written to."""
    order = np.argsort(_hashes(seed, num)).astype(np.uint32)  # no two hashes agree, so any sort does the same
    order.flags.writeable = False
    return order


def _hashes(seed: int, num: int) -> np.ndarray:
    """splitmix64 (Steele et al. 2014) at ``num`` points in sequence, from ``seed`` on: all of them different."""
    x = np.uint64(seed) + np.arange(1, num + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
