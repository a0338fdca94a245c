"""Batches from one bucket each: endless, seeded, exact, and entered anywhere at once.

Each bucket has an endless order of its own, every picture once per visit, cut into global batches that straddle the
visits; nothing is dropped and nothing comes more often than its share. In which step which bucket has its turn is
shuffled epoch by epoch: in epoch e a bucket with n pictures has so many turns that after it ``floor((e + 1) n / G)``
batches of G pictures are done, give or take a fixed phase. So the number of steps before an epoch is a sum over
buckets, and the place of a run is found by bisection, wherever it stands and however many processes there are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ldm import randomness
from ldm.data.buckets import Assignment


@dataclass(frozen=True, kw_only=True)
class BucketBatches:
    """Which samples each step takes, all of one bucket; see the top of this file.

    Args:
        assignment: which sample is in which bucket.
        global_batch: samples per step, over all processes.
        rank: of this process, in [0, world_size).
        world_size: how many processes there are; must divide ``global_batch``.
        seed: of the order.
        start: how many samples the run has taken already. Where it is no multiple of ``global_batch``, for that was
            changed, the order goes on with the next whole step.

    Raises:
        ValueError: no picture in any bucket, or a batch that cannot be shared equally.
    """

    assignment: Assignment
    global_batch: int
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    start: int = 0

    def __post_init__(self) -> None:
        if not self.assignment.counts().all():
            raise ValueError("a bucket is empty: no picture comes out in its size")
        if self.global_batch < 1 or self.global_batch % self.world_size:
            raise ValueError(
                f"batch_size is {self.global_batch} over all processes, but there are {self.world_size} of them "
                f"to share it equally; choose a multiple"
            )

    @property
    def slots(self) -> range:
        """This process's places in the global batch."""
        share = self.global_batch // self.world_size
        return range(self.rank * share, (self.rank + 1) * share)

    @cached_property
    def _streams(self) -> list[_Stream]:
        sizes = self.assignment.sizes
        names = [f"{height}x{width}" for height, width in sizes]
        return [_Stream(self.assignment.members(k), name, self.seed) for k, name in enumerate(names)]

    def _done(self, epoch: int) -> list[int]:
        """How many batches of each bucket come before an epoch."""
        return [
            (epoch * len(stream.members) + stream.phase(self.global_batch)) // self.global_batch
            for stream in self._streams
        ]

    def _epoch_of(self, step: int) -> int:
        """The epoch that a step belongs to."""
        counts = self.assignment.counts()
        per_epoch, buckets = counts.sum() / self.global_batch, len(counts)
        first = max(0, int((step - buckets) / per_epoch) - 1)
        epochs = range(first, int((step + buckets + 1) / per_epoch) + 2)
        return epochs[bisect_right(epochs, step, key=lambda epoch: sum(self._done(epoch))) - 1]

    def turns(self, epoch: int) -> np.ndarray:
        """The bucket of each step of an epoch."""
        before, after = self._done(epoch), self._done(epoch + 1)
        turns = np.repeat(np.arange(len(before)), np.subtract(after, before))
        keyed = randomness.generator(self.seed, "turns of buckets", epoch)
        return turns[torch.randperm(len(turns), generator=keyed).numpy()]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = -(-self.start // self.global_batch)
        epoch = self._epoch_of(step)
        skip = step - sum(self._done(epoch))
        while True:
            taken = self._done(epoch)
            for place, bucket in enumerate(self.turns(epoch).tolist()):
                if place >= skip:
                    first = taken[bucket] * self.global_batch
                    stream = self._streams[bucket]
                    yield [stream.at(first + slot) for slot in self.slots]
                taken[bucket] += 1
            epoch, skip = epoch + 1, 0


class _Stream:
    """The endless order of one bucket: position p is its picture ``order(p // n)[p % n]`` at visit ``p // n``."""

    def __init__(self, members: np.ndarray, name: str, seed: int) -> None:
        self.members, self.name, self.seed = members, name, seed
        self._order, self._of_visit = members, -1

    def phase(self, global_batch: int) -> int:
        """So that buckets that have a turn every few epochs do not all have it in the same one."""
        return randomness.address(self.seed, "phase of bucket", self.name) % global_batch

    def at(self, position: int) -> tuple[int, int]:
        """(sample, visit)."""
        visit, place = divmod(position, len(self.members))
        if visit != self._of_visit:
            keyed = randomness.generator(self.seed, "order of bucket", self.name, visit)
            self._order = self.members[torch.randperm(len(self.members), generator=keyed).numpy()]
            self._of_visit = visit
        return int(self._order[place]), visit
