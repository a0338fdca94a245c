"""Random access to plain shards, without unpacking or rewriting them: sample i of all, by number.

What each shard holds stands in its ``.idx`` (see ``shard_index``), whose columns are mapped when they are asked for.
So a hundred million samples cost no Python object each: in memory are a header per shard, and, where filters leave
some samples out, four bytes for each that stays.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ldm.data.filters import Filter
from ldm.data.headers import FORMATS
from ldm.data.scan import PARTS, PICTURES
from ldm.data.shard_index import ShardHeader, ShardIndex, load_headers

__all__ = ["FORMATS", "PARTS", "PICTURES", "SampleIndex", "Skipped", "build_index", "report"]

_OPEN = 256  # shards that are kept open at a time; an operating system allows about a thousand files
_NEAR = 8_192  # bytes between a sample's members that are read along
_LISTED = 10_000  # skipped samples that are kept with their reasons
_COLUMNS = ("width", "height", "format", "caption_length", "picture_size", "txt_size", "json_size")


@dataclass(frozen=True)
class Skipped:
    """Something in a shard that is not used, and why. ``key`` is empty where it concerns the whole shard."""

    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}, {self.key}: {self.reason}" if self.key else f"{self.shard}: {self.reason}"


class SampleIndex:
    """The samples of some shards, in the order in which they stand there; made by ``build_index``."""

    def __init__(
        self,
        headers: Sequence[ShardHeader],
        *,
        rows: Sequence[np.ndarray | None],
        skipped: list[Skipped],
        num_skipped: int,
        num_filtered: int,
        names: Sequence[str],
    ) -> None:
        self.headers = list(headers)
        self.shards = [header.path for header in headers]
        self.names = list(names)  # of the shards, in keys
        self.rows = list(rows)  # (count,) uint32 of each shard: the rows that are taken; None: all
        self.counts = np.array(
            [
                header.count if taken is None else len(taken)
                for header, taken in zip(headers, rows, strict=True)
            ],
            dtype=np.int64,
        )  # (S,) samples per shard
        self.ends = np.cumsum(self.counts)  # (S,)
        self.skipped = skipped  # the first of them
        self.num_skipped = num_skipped
        self.num_filtered = num_filtered
        self._open: OrderedDict[int, ShardIndex] = OrderedDict()
        self._files: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def place(self, i: int) -> tuple[int, int]:
        """Sample number -> (number of its shard, row in that shard's index)."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        shard = int(np.searchsorted(self.ends, i, side="right"))
        row = i - int(self.ends[shard] - self.counts[shard])
        taken = self.rows[shard]
        return shard, row if taken is None else int(taken[row])

    def shard_range(self, i: int) -> range:
        """The numbers of all samples in the shard of sample ``i``."""
        shard = int(np.searchsorted(self.ends, i, side="right"))
        return range(int(self.ends[shard] - self.counts[shard]), int(self.ends[shard]))

    def key(self, i: int) -> str:
        """The sample's name over all shards, e.g. ``00003/000030017``: what its randomness is tied to."""
        shard, row = self.place(i)
        return f"{self.names[shard]}/{self._shard(shard).key(row)}"

    def skip(self, i: int, reason: str) -> Skipped:
        """A note that sample ``i`` cannot be used."""
        shard, row = self.place(i)
        return Skipped(self.names[shard] + ".tar", self._shard(shard).key(row), reason)

    def find(self, key: str) -> int:
        """The number of the sample called ``key``; a search through its shard, for rare use.

        Raises:
            KeyError: there is none.
        """
        for shard, name in enumerate(self.names):
            if not key.startswith(name + "/"):
                continue
            row = self._shard(shard).find(key[len(name) + 1 :])
            taken = self.rows[shard]
            if row >= 0 and taken is not None:
                at = int(np.searchsorted(taken, row))
                row = at if at < len(taken) and taken[at] == row else -1
            if row >= 0:
                return int(self.ends[shard] - self.counts[shard]) + row
        raise KeyError(key)

    def read(self, i: int, part: str) -> bytes | None:
        """The bytes of one member of sample ``i``: "picture", "txt" or "json"; None where it has none.

        Raises:
            OSError: the shard has become shorter since it was indexed, or cannot be read.
        """
        shard, row = self.place(i)
        index, which = self._shard(shard), PARTS.index(part)
        size = int(index.sizes[row, which])
        if size < 0:
            return None
        # Not mapped: a shard that shrinks would kill the process, and mapped pages would count as its memory.
        data = os.pread(self._file(shard), size, int(index.offsets[row, which]))
        if len(data) < size:
            raise OSError(f"{self.shards[shard]} has become shorter since it was indexed; start again")
        return data

    def members(self, i: int) -> tuple[str, list[bytes | None]]:
        """Key, and picture, txt and json of sample ``i``, None where it has none: one look-up, and mostly one read.

        Raises:
            OSError: as ``read``.
        """
        shard, row = self.place(i)
        index = self._shard(shard)
        offsets, sizes = index.offsets[row].tolist(), index.sizes[row].tolist()
        begin = min(at for at, size in zip(offsets, sizes, strict=True) if size >= 0)
        end = max(at + size for at, size in zip(offsets, sizes, strict=True))
        file = self._file(shard)
        found: list[bytes | None] = []
        whole = os.pread(file, end - begin, begin) if end - begin < sum(sizes) + _NEAR else None
        for at, size in zip(offsets, sizes, strict=True):
            if size < 0:
                found.append(None)
                continue
            data = os.pread(file, size, at) if whole is None else whole[at - begin : at - begin + size]
            if len(data) < size:
                raise OSError(f"{self.shards[shard]} has become shorter since it was indexed; start again")
            found.append(data)
        return f"{self.names[shard]}/{index.key(row)}", found

    def column(self, name: str) -> np.ndarray:
        """(N,) of every sample, without reading a picture.

        Args:
            name: "width" and "height" as displayed and "format" (a place in ``FORMATS``), 0 where the picture's
                header cannot be read; "caption_length" in characters of the txt, -1 where there is none;
                "picture_size", "txt_size", "json_size" in bytes, -1 where there is none; or "json.<field>", a number
                of the json, NaN where it is missing.

        Raises:
            KeyError: no shard has such a column; the message says which there are.
        """
        return np.concatenate([self.shard_column(shard, name) for shard in range(len(self.shards))])

    def shard_column(self, shard: int, name: str) -> np.ndarray:
        """``column`` of the samples of one shard."""
        index, taken = self._shard(shard), self.rows[shard]
        if name.endswith("_size") and name in _COLUMNS:
            found = index.sizes[:, PARTS.index(name.removesuffix("_size"))]
        elif name in index.header.columns and name not in index.header.values:
            found = index.column(name)
        elif name in self.columns:
            found = np.full(index.header.count, np.nan)  # a json field that this shard lacks
        else:
            raise KeyError(f"no column '{name}'; there are {', '.join(self.columns)}")
        return found if taken is None else found[taken]

    @property
    def columns(self) -> list[str]:
        """The names that ``column`` knows."""
        fields = {
            name
            for header in self.headers
            for name in header.columns
            if name.startswith("json.") and name not in header.values
        }
        return [*_COLUMNS, *sorted(fields)]

    @property
    def fingerprint(self) -> str:
        """A hash over shard names, keys, the place and size of every member, and which samples are taken.

        Not over the contents: ``shard_index`` compares each tar with its index.
        """
        digest = hashlib.blake2b(digest_size=16)
        for name, header, taken in zip(self.names, self.headers, self.rows, strict=True):
            digest.update(f"{name}\0{header.digest}\0".encode())
            if taken is not None:
                digest.update(taken.tobytes())
        return digest.hexdigest()

    def _shard(self, shard: int) -> ShardIndex:
        if shard not in self._open:
            self._open[shard] = self.headers[shard].open()
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)
        return self._open[shard]

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            self._files[shard] = os.open(self.shards[shard], os.O_RDONLY)
            if len(self._files) > _OPEN:
                os.close(self._files.popitem(last=False)[1])
        return self._files[shard]

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)

    def __getstate__(self) -> dict[str, object]:  # neither maps nor open files travel to another process
        return self.__dict__ | {"_open": OrderedDict(), "_files": OrderedDict()}


def build_index(
    shards: Sequence[Path],
    *,
    caption_fields: Sequence[str] | None = ("txt",),
    missing: str = "skip",
    filters: Sequence[str] = (),
    prefix: str = "",
) -> SampleIndex:
    """The index of some shards; what has none yet is scanned (about 10,000 samples in half a second of one core).

    Args:
        shards: plain tar files.
        caption_fields: where captions come from, "txt" or fields of the json; None where none is needed.
        missing: what becomes of a sample without text in any of them: "skip", "empty" (it is taken) or "error".
        filters: conditions that a sample must all fulfil, like "min_side >= 256"; see ``Filter``.
        prefix: put before all keys, to tell apart sources whose shards are called alike.

    Raises:
        StaleIndex: a shard was changed after it was indexed.
        ValueError: not one sound sample in all the shards, a filter that no sample passes, or a sample without caption
            where that is an error; the message says why.
    """
    headers = load_headers(shards)
    conditions = [Filter(text) for text in filters]
    for condition in conditions:
        condition.check(headers)
    rows: list[np.ndarray | None] = []
    skipped: list[Skipped] = []
    num_skipped = num_filtered = 0
    for header in headers:
        if header.num_problems:
            problems = header.open().problems()
            num_skipped += len(problems)
            for key, reason in problems[: _LISTED - len(skipped)]:
                skipped.append(Skipped(header.path.name, key, reason))
        taken = None
        fields = () if caption_fields is None or missing == "empty" else caption_fields
        if fields and max(header.with_text.get(name, 0) for name in fields) < header.count:
            opened = header.open()
            has = _has_text(opened, fields)
            taken, without = np.flatnonzero(has), np.flatnonzero(~has)
            if len(without) and missing == "error":
                raise ValueError(_without_caption(header, opened.key(int(without[0])), len(without), fields))
            num_skipped += len(without)
            for row in without[: _LISTED - len(skipped)].tolist():
                skipped.append(
                    Skipped(header.path.name, opened.key(row), f"has no caption ({', '.join(fields)})")
                )
        if conditions:
            opened = header.open()
            before = np.arange(header.count) if taken is None else taken
            passes = np.logical_and.reduce([condition(opened) for condition in conditions])
            taken = before[passes[before]]
            num_filtered += len(before) - len(taken)
        rows.append(None if taken is None or len(taken) == header.count else taken.astype(np.uint32))
    index = SampleIndex(
        headers,
        rows=rows,
        skipped=skipped,
        num_skipped=num_skipped,
        num_filtered=num_filtered,
        names=_names([header.path for header in headers], prefix),
    )
    if not len(index):
        if num_filtered:
            raise ValueError(f"none of {num_filtered:,} samples passes the filters {', '.join(filters)}")
        listed = "; ".join(map(str, skipped[:3]))
        there = sorted({name for header in headers for name, count in header.with_text.items() if count})
        if there and fields:
            listed += f"; texts there are in {', '.join(there)}: set caption_field"
        raise ValueError(f"no sound sample in {len(shards)} shards ({listed or 'they are empty'})")
    return index


def _has_text(index: ShardIndex, fields: Sequence[str]) -> np.ndarray:
    """(count,) bool: samples with a text in one of the fields."""
    has = np.zeros(index.header.count, bool)
    for name in fields:
        column = "caption_length" if name == "txt" else f"text.{name}"
        if column in index.header.columns:
            has |= index.column(column) > 0
    return has


def _without_caption(header: ShardHeader, key: str, num: int, fields: Sequence[str]) -> str:
    there = [name for name, count in header.with_text.items() if count]
    return (
        f"{num} samples of {header.path.name} have no caption in {' or '.join(map(repr, fields))}, the first is {key} "
        f"(texts there are in {', '.join(there) or 'no field at all'}): set caption_field, or caption_recipe.missing "
        f"to skip or empty"
    )


def joined(indexes: Sequence[SampleIndex]) -> SampleIndex:
    """One index over all, one after the other."""
    return SampleIndex(
        [header for index in indexes for header in index.headers],
        rows=[rows for index in indexes for rows in index.rows],
        skipped=[skip for index in indexes for skip in index.skipped],
        num_skipped=sum(index.num_skipped for index in indexes),
        num_filtered=sum(index.num_filtered for index in indexes),
        names=[name for index in indexes for name in index.names],
    )


def _names(shards: list[Path], prefix: str) -> list[str]:
    """What each shard is called in keys: its stem, with as many folders before it as tell all apart."""
    parts = [(*path.parent.parts, path.stem) for path in shards]
    depth = 1
    while depth < 8 and Counter(part[-depth:] for part in parts).most_common(1)[0][1] > 1:
        depth += 1
    return ["/".join([prefix, *part[-depth:]] if prefix else part[-depth:]) for part in parts]


def report(skipped: Iterable[Skipped], *, num: int | None = None, limit: int = 5) -> str:
    """One readable paragraph: how many were skipped (``num``, where not all are listed), and the first of them."""
    skips = list(skipped)
    total = len(skips) if num is None else num
    lines = [f"  {skip}" for skip in skips[:limit]]
    more = [f"  ... and {total - limit:,} more"] if total > limit else []
    return "\n".join([f"{total:,} things in the shards are not used:", *lines, *more])
