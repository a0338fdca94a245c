"""Shards -> Batch: an exact, endless order that any number of processes walk together.

The way of a picture: ``GlobalBatches`` says which samples a step takes, ``ShardDataset`` reads, decodes and crops
each of them (in worker processes, as bytes), and the loader makes the Batch (once, in the main process).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ldm import randomness
from ldm.data.buckets import Assignment, Sizes, Square
from ldm.data.captions import AS_WRITTEN, CaptionRecipe, texts_of
from ldm.data.decode import UnreadablePicture
from ldm.data.index import build_index, report
from ldm.data.sample import Item, MissingCaption, Preparation, stack
from ldm.data.shards import find_shards
from ldm.interfaces import Batch

log = logging.getLogger(__name__)

Request = tuple[int, int]
"""(index of a sample, visit): which picture, and how often it was taken before."""


class ShardDataset(Dataset[Item]):
    """The samples of some shards by number; see ``Preparation`` for what is done to each.

    Args:
        shards: a folder, a pattern or a list of them; see ``find_shards``.
        image_size: side of the square that comes out, in pixels.
        caption_field: "txt", a json's field, or several with weights; see ``Preparation``.
        captions: what is done to captions, and what if there is none.
        flip: mirror every other visit.
        crop: "center" or "random".
        seed: of the random choices.
        background: what transparent parts of a picture show.
        original_size_from: the json's fields for the original size; see ``Preparation``.
        buckets: in which sizes pictures come out; None for the square.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: no sound sample at all, or an option that is none.
    """

    def __init__(
        self,
        *,
        shards: str | list[str],
        image_size: int,
        caption_field: str | Mapping[str, float] = "txt",
        captions: CaptionRecipe = AS_WRITTEN,
        flip: bool = False,
        crop: str = "center",
        seed: int = 0,
        background: str = "white",
        original_size_from: Sequence[str] | None = None,
        buckets: Sizes | None = None,
    ) -> None:
        self.preparation = Preparation(
            image_size=image_size,
            caption_field=caption_field,
            captions=captions,
            flip=flip,
            crop=crop,
            seed=seed,
            background=background,
            original_size_from=original_size_from,
        )
        self.index = build_index(
            find_shards(shards),
            caption_fields=list(self.preparation.fields),
            missing=captions.missing,
        )
        if self.index.num_skipped:
            log.warning(report(self.index.skipped, num=self.index.num_skipped))
        self.buckets = (buckets or Square()).sized(image_size)

    @cached_property
    def assignment(self) -> Assignment:
        """In which size each sample comes out."""
        if not self.buckets.looks_at_pictures:
            nothing = np.broadcast_to(np.int32(0), len(self))
            return self.buckets.assign(nothing, nothing)
        height, width = self.index.column("height"), self.index.column("width")
        return self.buckets.assign(np.maximum(height, 1), np.maximum(width, 1))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, request: Request | int) -> Item:
        """The sample (index, visit); in place of a damaged picture, the next sound one.

        Raises:
            ValueError: a hundred damaged pictures in a row, or no caption in the field.
        """
        index, visit = (request, 0) if isinstance(request, int) else request
        # Also what takes a damaged picture's place comes out in the size that the batch has.
        size = self.assignment.sizes[self.assignment.bucket[index]]
        for place in range(index, index + 100):
            i = place % len(self)
            key = self.index.key(i)
            picture = self.index.read(i, "picture")
            assert picture is not None  # else it would not be in the index
            txt, meta = self.index.read(i, "txt"), self.index.read(i, "json")
            try:
                return self.preparation.item(picture, txt=txt, meta=meta, key=key, visit=visit, size=size)
            except (UnreadablePicture, MissingCaption) as error:
                log.warning("sample %s is replaced by the next one: %s", key, error)
        raise ValueError(f"100 damaged pictures in a row, from sample {self.index.key(index)} on")

    def captions(self, i: int) -> dict[str, list[str]]:
        """Everything that is said about sample ``i``, by field: "txt" and the texts in its json."""
        return texts_of(self.index.read(i, "txt"), self.index.read(i, "json"))


class Order(Protocol):
    """Which samples each step takes, without end."""

    @property
    def slots(self) -> range:
        """This process's places in the global batch."""
        ...

    @property
    def global_batch(self) -> int: ...

    def __iter__(self) -> Iterator[list[Request]]:
        """This process's share of each step."""
        ...


@dataclass(frozen=True, kw_only=True)
class GlobalBatches:
    """Which samples each step takes: endless, seeded, and cut by place in the global batch.

    Position p of the run is sample ``order(seed, p // n)[p % n]`` at visit ``p // n``: each sample once per epoch,
    batches straddle epochs, nothing is dropped. A process takes its contiguous slice of each global batch, so the
    number of processes changes nothing about the samples of a step, and neither does a restart.

    Args:
        num_samples: n, in the data set.
        global_batch: samples per step, over all processes.
        rank: of this process, in [0, world_size).
        world_size: how many processes there are; must divide ``global_batch``.
        seed: of the order.
        start: how many samples the run has taken already; any number.
    """

    num_samples: int
    global_batch: int
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    start: int = 0

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError("the data set is empty")
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

    def __iter__(self) -> Iterator[list[Request]]:
        order, of_visit = np.empty(0, dtype=np.int64), -1
        first = self.start
        while True:
            requests = []
            for p in range(first + self.slots.start, first + self.slots.stop):
                visit, place = divmod(p, self.num_samples)
                if visit != of_visit:
                    keyed = randomness.generator(self.seed, "order", visit)
                    order, of_visit = torch.randperm(self.num_samples, generator=keyed).numpy(), visit
                requests.append((int(order[place]), visit))
            yield requests
            first += self.global_batch


class BatchLoader:
    """Batches to iterate over, again and again; deliberately no DataLoader, so Lightning leaves its order alone."""

    def __init__(self, batches: Callable[[], Iterator[Batch]], *, num_batches: int | None = None) -> None:
        self._batches = batches
        self._num_batches = num_batches  # None: no end

    def __iter__(self) -> Iterator[Batch]:
        return self._batches()

    def __len__(self) -> int:
        if self._num_batches is None:
            raise TypeError("an endless loader has no length")
        return self._num_batches


def endless(dataset: ShardDataset, order: Callable[[], Order], *, num_workers: int) -> BatchLoader:
    """Training batches without end.

    Args:
        dataset: to read from.
        order: says what to read; asked each time that an iteration begins, so it starts where the run stands then.
        num_workers: processes that decode; 0 decodes in this one.
    """

    def batches() -> Iterator[Batch]:
        requests = order()
        loader: DataLoader[Item] = DataLoader(
            dataset,
            batch_sampler=requests,
            num_workers=num_workers,
            collate_fn=stack,
        )
        for stacked in loader:
            yield stacked.batch(slots=requests.slots, num_slots=requests.global_batch)

    return BatchLoader(batches)


def in_order(
    dataset: ShardDataset, *, batch_size: int, num_workers: int = 0, start: int = 0, stop: int | None = None
) -> BatchLoader:
    """Every sample from ``start`` to ``stop`` once, at visit 0; nothing dropped, the last batch may be smaller.

    With buckets they come bucket by bucket. The whole data set counts as one global batch: ``slots`` are places in it.
    """
    pieces = pieces_of(dataset.assignment, batch_size=batch_size, start=start, stop=stop)
    total = len(dataset) - int((dataset.assignment.bucket < 0).sum())
    loader: DataLoader[Item] = DataLoader(
        dataset,
        batch_sampler=[[(i, 0) for i in piece] for piece in pieces],
        num_workers=num_workers,
        collate_fn=stack,
        persistent_workers=num_workers > 0,  # a validation set is walked many times
    )

    def batches() -> Iterator[Batch]:
        first = start
        for piece, stacked in zip(pieces, loader, strict=True):
            yield stacked.batch(slots=range(first, first + len(piece)), num_slots=total)
            first += len(piece)

    return BatchLoader(batches, num_batches=len(pieces))


def pieces_of(
    assignment: Assignment, *, batch_size: int, start: int = 0, stop: int | None = None
) -> list[list[int]]:
    """Samples [start, stop) in batches of one size each, bucket after bucket; the last of each perhaps shorter."""
    pieces = []
    for bucket in range(len(assignment.sizes)):
        members = assignment.members(bucket)
        members = members[
            (members >= start) & (members < (len(assignment.bucket) if stop is None else stop))
        ].tolist()
        pieces += [members[at : at + batch_size] for at in range(0, len(members), batch_size)]
    return pieces
