"""Shards read from front to back, for data that is far away or has no end: webdataset's own reader, the same Batch.

Statistically right, but not exact: shards are drawn with replacement, samples are shuffled within a window, and a
restart begins anew; bad samples are passed over and named in the log. Where the shards lie on a disk,
``pipeline.endless`` keeps an exact order.

webdataset opens addresses like ``https://``, ``gs://`` or ``pipe:`` by running a program on a line made from the
address. Here ``http(s)://`` and files are opened without, and everything else only where it is allowed by name.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.request import urlopen

import webdataset
from torch.utils.data import DataLoader
from webdataset.gopen import gopen
from webdataset.tariterators import group_by_keys, tar_file_expander

from ldm.data.decode import UnreadablePicture
from ldm.data.index import PICTURES
from ldm.data.loading import BatchLoader
from ldm.data.memory import Memory
from ldm.data.sample import Item, MissingCaption, Preparation, Stacked, stack
from ldm.data.shards import find_shards
from ldm.interfaces import Batch
from ldm.randomness import address

log = logging.getLogger(__name__)


def streaming(
    shards: str | list[str],
    preparation: Preparation,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    shuffle_buffer: int = 1_000,
    allow_commands: bool = False,
) -> BatchLoader:
    """Training batches without end.

    Args:
        shards: like ``find_shards``, or addresses that webdataset opens (``https://...``).
        preparation: what is done to each sample.
        batch_size: over all processes.
        rank: of this process; each draws shards of its own.
        world_size: number of processes; must divide ``batch_size``.
        num_workers: processes that read and decode; 0 does it in this one.
        shuffle_buffer: samples in the window from which the next one is drawn.
        allow_commands: addresses for which webdataset runs a program (pipe:, gs://, ...), too.

    Raises:
        FileNotFoundError: a shard on disk is missing.
        ValueError: ``batch_size`` cannot be shared equally, or an address would run a program.
    """
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(
            f"batch_size is {batch_size} over all {world_size} processes; choose a multiple of it"
        )
    share = batch_size // world_size
    slots = range(rank * share, (rank + 1) * share)
    seed = address(preparation.seed, "stream", rank)
    reader = webdataset.DataPipeline(
        webdataset.ResampledShards(_addresses(shards, allow_commands), seed=seed, deterministic=True),
        _Open(allow_commands),
        # A shard that breaks off is left there; webdataset's warning handler would sleep at each.
        partial(tar_file_expander, handler=_pass_over),
        partial(group_by_keys, handler=_pass_over),
        webdataset.shuffle(shuffle_buffer, initial=min(100, shuffle_buffer), rng=random.Random(seed)),
        _Prepare(preparation),
        webdataset.batched(share, collation_fn=_stacked, partial=False),
    )

    def batches() -> Iterator[Batch]:
        for stacked in DataLoader(reader, batch_size=None, num_workers=num_workers):
            yield stacked.batch(slots=slots, num_slots=batch_size)

    return BatchLoader(batches)


def _stacked(items: list[Item]) -> Stacked:
    return stack(items, len(items), memory=Memory())


@dataclass(frozen=True)
class _Prepare:
    """A stage of the stream. A sample's place in it stands for the visit, which a stream cannot know."""

    preparation: Preparation

    def __call__(self, samples: Iterator[Mapping[str, Any]]) -> Iterator[Item]:
        for place, sample in enumerate(samples):
            picture = next((sample[name] for name in sample if name.lower() in PICTURES), None)
            if picture is None:
                log.warning("sample %s is passed over: it has no picture", sample["__key__"])
                continue
            txt, meta = sample.get("txt"), sample.get("json")
            shard = sample["__url__"].rsplit("/", 1)[-1].removesuffix(".tar")
            try:
                key = f"{shard}/{sample['__key__']}"
                yield self.preparation.item(picture, txt=txt, meta=meta, key=key, visit=place)
            except MissingCaption as error:
                if self.preparation.captions.missing == "error":
                    raise
                log.warning("sample %s is passed over: %s", sample["__key__"], error)
            except UnreadablePicture as error:
                log.warning("sample %s is passed over: %s", sample["__key__"], error)


def _pass_over(error: Exception) -> bool:
    log.warning("the rest of a shard is passed over: %s", error)
    return True


@dataclass(frozen=True)
class _Open:
    """A stage of the stream: addresses -> open files."""

    allow_commands: bool

    def __call__(self, addresses: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for found in addresses:
            try:
                yield {**found, "stream": self._opened(found["url"])}
            except OSError as error:
                log.warning("the shard %s is passed over: %s", found["url"], error)

    def _opened(self, address: str) -> IO[bytes]:
        if address.startswith(("http://", "https://")):
            return urlopen(address, timeout=60)
        if _runs_a_program(address):
            assert self.allow_commands, address  # else it was refused at the start
            return gopen(address)
        return Path(address).open("rb")


def _runs_a_program(address: str) -> bool:
    return address.startswith("pipe:") or (
        "://" in address and not address.startswith(("http://", "https://"))
    )


def _addresses(shards: str | list[str], allow_commands: bool) -> list[str]:
    """Every shard's address.

    Raises:
        FileNotFoundError: a shard on disk is missing.
        ValueError: an address would run a program.
    """
    out: list[str] = []
    for where in [shards] if isinstance(shards, str) else shards:
        if _runs_a_program(where) and not allow_commands:
            raise ValueError(
                f"shards '{where}': an address that runs a program is refused; name files or https://, or allow it "
                f"with data.allow_commands=true"
            )
        remote = "://" in where or where.startswith("pipe:")
        out += webdataset.shardlists.expand_urls(where) if remote else map(str, find_shards(where))
    return out
