"""Shards -> Batch: an exact, endless order that any number of processes walk together.

The way of a picture: an ``Order`` says which samples a step takes, ``ShardDataset`` reads, decodes and crops each of
them (in worker processes, as bytes), and the loader makes the Batch (once, in the main process).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain

import numpy as np
from torch.utils.data import Dataset

from ldm.data.bad_samples import Ledger, TooManyBadSamples
from ldm.data.blend import Source
from ldm.data.buckets import Assignment, Sizes, Square
from ldm.data.captions import AS_WRITTEN, CaptionRecipe, texts_of
from ldm.data.decode import UnreadablePicture
from ldm.data.index import Skipped, build_index, joined, report
from ldm.data.loading import BatchLoader, Reader
from ldm.data.memory import Memory
from ldm.data.order import Order, Request
from ldm.data.sample import Item, MissingCaption, Preparation
from ldm.data.shards import find_shards
from ldm.interfaces import Batch
from ldm.randomness import address

log = logging.getLogger(__name__)

TRIES = 100  # bad samples in a row


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
        decode_margin: how many times what is shown JPEGs are decoded at least; see ``Preparation``.
        original_size_from: the json's fields for the original size; see ``Preparation``.
        buckets: in which sizes pictures come out; None for the square.
        filters: conditions that samples must fulfil, like "min_side >= 256"; see ``ldm.data.filters``.
        sources: in place of ``shards``, several of them, each with a weight; see ``ldm.data.blend``.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: no sound sample at all, or an option that is none.
    """

    def __init__(
        self,
        *,
        shards: str | list[str] | None = None,
        image_size: int,
        caption_field: str | Mapping[str, float] = "txt",
        captions: CaptionRecipe = AS_WRITTEN,
        flip: bool = False,
        crop: str = "center",
        seed: int = 0,
        background: str = "white",
        decode_margin: float = 2.0,
        original_size_from: Sequence[str] | None = None,
        buckets: Sizes | None = None,
        filters: Sequence[str] = (),
        sources: Sequence[Source] = (),
    ) -> None:
        self.preparation = Preparation(
            image_size=image_size,
            caption_field=caption_field,
            captions=captions,
            flip=flip,
            crop=crop,
            seed=seed,
            background=background,
            decode_margin=decode_margin,
            original_size_from=original_size_from,
        )
        if (shards is None) == (not sources):
            raise ValueError("give either shards or sources")
        self.sources = list(sources) if shards is None else [Source(shards=shards)]
        self.preparations = [
            replace(self.preparation, caption_field=source.caption_field or caption_field)
            for source in self.sources
        ]
        indexes = [
            build_index(
                find_shards(source.shards),
                caption_fields=list(preparation.fields),
                missing=captions.missing,
                filters=[*filters, *source.filters],
                prefix=str(source.name) if len(self.sources) > 1 else "",
            )
            for source, preparation in zip(self.sources, self.preparations, strict=True)
        ]
        self.index = indexes[0] if len(indexes) == 1 else joined(indexes)
        self.source_ends = np.cumsum([len(index) for index in indexes])  # (number of sources,)
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
        """One sample; see ``read``."""
        return self.read(Request(request, 0) if isinstance(request, int) else request)[0]

    def read(self, request: Request) -> tuple[Item, list[Skipped]]:
        """A sample at a visit; in place of a bad one always the same other one.

        Returns:
            The sample, and the bad ones that it stands for, each with the reason.

        Raises:
            TooManyBadSamples: a hundred in a row.
            MissingCaption: there is none, and the policy is not to go without.
        """
        index, visit = request.sample, request.visit
        # Also what takes a bad sample's place comes out in the size that the batch has.
        size = self.assignment.sizes[self.assignment.bucket[index]]
        bad: list[Skipped] = []
        for i in chain((index,), self._others(index)):
            key, (picture, txt, meta) = self.index.members(i)
            assert picture is not None  # else it would not be in the index
            try:
                preparation = self.preparation_of(i)
                return preparation.item(picture, txt=txt, meta=meta, key=key, visit=visit, size=size), bad
            except MissingCaption as error:
                if self.preparation.captions.missing == "error":
                    raise
                bad.append(self.index.skip(i, str(error)))
            except UnreadablePicture as error:
                bad.append(self.index.skip(i, str(error)))
        raise TooManyBadSamples(f"{TRIES} bad samples in a row; the first is {bad[0]}")

    def preparation_of(self, i: int) -> Preparation:
        """What is done to sample ``i``; sources differ in where their captions are."""
        if len(self.preparations) == 1:
            return self.preparation
        return self.preparations[int(np.searchsorted(self.source_ends, i, side="right"))]

    def _others(self, index: int) -> Iterator[int]:
        """What may stand for a bad sample: of its shard, which is read anyway, and then of its source."""
        source = int(np.searchsorted(self.source_ends, index, side="right"))
        all_of_source = range(
            int(self.source_ends[source - 1]) if source else 0, int(self.source_ends[source])
        )
        for attempt in range(1, TRIES):
            among = self.index.shard_range(index) if attempt < TRIES // 10 else all_of_source
            yield among[address(self.preparation.seed, "instead", index, attempt) % len(among)]

    def captions(self, i: int) -> dict[str, list[str]]:
        """Everything that is said about sample ``i``, by field: "txt" and the texts in its json."""
        return texts_of(self.index.read(i, "txt"), self.index.read(i, "json"))


def endless(
    dataset: ShardDataset, order: Callable[[], Order], *, num_workers: int, ledger: Ledger | None = None
) -> BatchLoader:
    """Training batches without end.

    Args:
        dataset: to read from.
        order: says what to read; asked each time that an iteration begins, so it starts where the run stands then.
        num_workers: processes that decode; 0 decodes in this one.
        ledger: counts bad samples; None keeps one that only stops at too many.
    """

    def batches() -> Iterator[Batch]:
        requests = order()
        reader = Reader(dataset, requests, ledger=ledger or Ledger(), num_workers=num_workers)
        memory = Memory()
        for stacked in reader:
            yield stacked.batch(slots=requests.slots, num_slots=requests.global_batch, memory=memory)

    return BatchLoader(batches, epoch=lambda: order().num_batches)


def in_order(
    dataset: ShardDataset,
    *,
    batch_size: int,
    num_workers: int = 0,
    start: int = 0,
    stop: int | None = None,
    ledger: Ledger | None = None,
) -> BatchLoader:
    """Every sample from ``start`` to ``stop`` once, at visit 0; nothing dropped, the last batch may be smaller.

    With buckets they come bucket by bucket. The whole data set counts as one global batch: ``slots`` are places in it.
    """
    pieces = pieces_of(dataset.assignment, batch_size=batch_size, start=start, stop=stop)
    total = len(dataset) - int((dataset.assignment.bucket < 0).sum())
    reader = Reader(
        dataset,
        [[Request(i, 0) for i in piece] for piece in pieces],
        ledger=ledger or Ledger(),
        num_workers=num_workers,
        again=True,  # a validation set is walked many times
    )

    def batches() -> Iterator[Batch]:
        first = start
        for piece, stacked in zip(pieces, reader, strict=True):
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
