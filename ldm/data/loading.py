"""Requests -> batches: read and decoded in worker processes, handed over as bytes, turned to floats here.

A worker makes whole batches, so it sends one message a batch. What goes wrong in it, and which samples it replaced,
comes along in the message, and is dealt with in the main process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from torch.utils.data import DataLoader, Dataset

from ldm.data.bad_samples import Ledger
from ldm.data.index import Skipped
from ldm.data.memory import Memory
from ldm.data.order import Request
from ldm.data.sample import Item, Stacked, stack
from ldm.interfaces import Batch


class Samples(Protocol):
    """What can be asked for samples by number."""

    def read(self, request: Request) -> tuple[Item, list[Skipped]]:
        """The sample, or what stands for it, and the bad ones that it stands for."""
        ...


class _Read(NamedTuple):
    stacked: Stacked | None
    replaced: list[Skipped]
    error: ValueError | OSError | None  # raised in the main process, where it is one readable line


class _Batches(Dataset[_Read]):
    """A batch by its requests."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.memory = Memory()

    def __getitem__(self, requests: Sequence[Request]) -> _Read:
        replaced: list[Skipped] = []
        try:
            items = self._items(requests, replaced)
            return _Read(stack(items, len(requests), memory=self.memory), replaced, None)
        except (ValueError, OSError) as error:
            return _Read(None, replaced, error)

    def _items(self, requests: Sequence[Request], replaced: list[Skipped]) -> Iterator[Item]:
        for request in requests:
            item, bad = self.samples.read(request)
            replaced += bad
            yield item


class Reader:
    """Reads one list of requests after the other, in order, with any number of workers.

    Args:
        samples: to read from.
        requests: a batch's each; finite or not.
        ledger: counts what was replaced.
        num_workers: processes that read and decode; 0 does it in this one.
        again: whether the same requests are read several times, so that workers are worth keeping.
    """

    def __init__(
        self,
        samples: Samples,
        requests: Iterable[list[Request]],
        *,
        ledger: Ledger,
        num_workers: int,
        again: bool = False,
    ) -> None:
        self.ledger = ledger
        self._loader: DataLoader[_Read] = DataLoader(
            _Batches(samples),
            sampler=requests,  # a batch is one item to it
            batch_size=None,
            num_workers=num_workers,
            collate_fn=_as_it_is,
            persistent_workers=again and num_workers > 0,
        )

    def __iter__(self) -> Iterator[Stacked]:
        for stacked, replaced, error in self._loader:
            if error is not None:
                self.ledger.note(replaced)
                raise error
            assert stacked is not None
            self.ledger.add(len(stacked.keys), replaced)
            yield stacked


def _as_it_is(read: Any) -> Any:
    return read


class BatchLoader:
    """Batches to iterate over, again and again; deliberately no DataLoader, so Lightning leaves its order alone.

    Args:
        batches: begins an iteration.
        num_batches: how many there are; None: no end.
        epoch: of an endless loader, tells how many steps take each sample once.
    """

    def __init__(
        self,
        batches: Callable[[], Iterator[Batch]],
        *,
        num_batches: int | None = None,
        epoch: Callable[[], int] | None = None,
    ) -> None:
        self._batches = batches
        self._num_batches = num_batches
        self._epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        return self._batches()

    def __len__(self) -> int:
        if self._num_batches is None:
            raise TypeError("an endless loader has no length; steps_per_epoch says how long an epoch is")
        return self._num_batches

    @property
    def steps_per_epoch(self) -> int:
        """How many batches take each sample once.

        Raises:
            TypeError: nobody can know, as of a stream.
        """
        return len(self) if self._epoch is None else self._epoch()
