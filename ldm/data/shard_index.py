"""``<shard>.idx``: what a scan found, as columns that are mapped and not read.

::

    8 bytes  LDM.IDX2
    8 bytes  length of the header, little endian
    header   json: the tar's size, mtime and SHA-256; how many samples; where each column begins
    columns  raw little-endian arrays, each at a multiple of 64

It stands beside its shard, or, where that folder cannot be written to, in a cache folder of the user's. Size and mtime
of the tar are compared at every start, for that costs nothing; where only the mtime differs (a copy), the whole hash
decides, once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.scan import PARTS, Scan, scan, tar_hash
from ldm.data.shards import index_path

MAGIC = b"LDM.IDX2"
_ALONE = 32 << 20  # bytes of tar that are scanned sooner than a process is begun
_ALIGNED = 64


class StaleIndex(ValueError):
    """A shard is not what its index says."""


@dataclass(frozen=True)
class ShardHeader:
    """What is known of a shard without touching its columns."""

    path: Path  # of the tar
    file: Path  # of the index
    start: int  # of the columns in it
    count: int  # samples with a picture
    with_text: dict[str, int]  # "txt" or a field of the json -> how many samples have a text there
    digest: str  # over keys and places of the members
    size: int
    mtime_ns: int
    sha256: str
    num_problems: int
    columns: dict[str, tuple[str, list[int], int]]  # name -> dtype, shape, place
    values: dict[str, list[str]]
    dropped: list[str]

    def open(self) -> ShardIndex:
        return ShardIndex(self)


class ShardIndex:
    """The columns of one shard, mapped: nothing is read before it is asked for.

    A file that is replaced meanwhile keeps its contents for whoever has mapped it.
    """

    def __init__(self, header: ShardHeader) -> None:
        self.header = header
        self._bytes = np.memmap(header.file, np.uint8, mode="r", offset=0)
        self.offsets = self.column("offsets")  # (N, 3)
        self.sizes = self.column("sizes")  # (N, 3)
        self._key_ends = self.column("key_ends")  # (N,)
        # Memory views: an element of an array would be an object of numpy's, several times slower to make.
        self._offsets, self._sizes, self._ends = self.offsets.data, self.sizes.data, self._key_ends.data
        self._keys = self.column("keys")  # (bytes,)

    def column(self, name: str) -> np.ndarray:
        """(N, ...) of one column.

        Raises:
            KeyError: the shard has none of this name.
        """
        dtype, shape, place = self.header.columns[name]
        at, num = self.header.start + place, int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.asarray(self._bytes[at : at + num]).view(dtype).reshape(shape)

    def key(self, row: int) -> str:
        return str(self._keys.data[self._ends[row - 1] if row else 0 : self._ends[row]], "utf-8")

    def spans(self, row: int) -> list[tuple[int, int]]:
        """Where each of a sample's ``PARTS`` begins, and its size; -1 where there is none."""
        return [(self._offsets[row, part], self._sizes[row, part]) for part in range(len(PARTS))]

    def find(self, key: str) -> int:
        """The row of a key; -1 where there is none."""
        wanted = key.encode()
        lengths = np.diff(self._key_ends, prepend=0)
        for row in np.flatnonzero(lengths == len(wanted)).tolist():
            end = int(self._key_ends[row])
            if self._keys[end - len(wanted) : end].tobytes() == wanted:
                return row
        return -1

    def problems(self) -> list[tuple[str, str]]:
        return [(key, reason) for key, reason in json.loads(self.column("problems").tobytes())]


def load_headers(shards: Sequence[Path], *, verify: bool = False, rebuild: bool = False) -> list[ShardHeader]:
    """The headers of all shards' indexes; what has no index yet is scanned, several at a time.

    Processes that do this at once share the work: each begins elsewhere, and passes over what is there by then.

    Args:
        shards: plain tar files.
        verify: compare the hash of every tar, too.
        rebuild: scan all anew.

    Raises:
        StaleIndex: a shard was changed after it was indexed.
    """
    headers = [None if rebuild else read_header_of(path) for path in shards]
    missing = [path for path, header in zip(shards, headers, strict=True) if header is None]
    if missing:
        _write_all(missing, rebuild=rebuild)
        headers = [
            header or read_header_of(path, check=False) for path, header in zip(shards, headers, strict=True)
        ]
    found = []
    for path, header in zip(shards, headers, strict=True):
        assert header is not None, path  # written a moment ago
        if verify and tar_hash(path) != header.sha256:
            raise _changed(header, "its SHA-256 is another")
        found.append(header)
    return found


def read_header_of(shard: Path, *, check: bool = True) -> ShardHeader | None:
    """The header of a shard's index, or None where there is no index (or one of another version)."""
    for cache in (False, True):
        header = _read(shard, index_path(shard, cache=cache))
        if header is not None:
            return _checked(header) if check else header
    return None


def _checked(header: ShardHeader) -> ShardHeader:
    state = header.path.stat()
    if state.st_size != header.size:
        raise _changed(header, f"it has {state.st_size:,} bytes, {header.size:,} when it was indexed")
    if state.st_mtime_ns != header.mtime_ns:  # a copy, or another content of the same length
        if tar_hash(header.path) != header.sha256:
            raise _changed(header, "its SHA-256 is another")
        write_index(header.path)  # with the new mtime, so that the hash is not asked for again
        return _read(header.path, index_path(header.path)) or header
    return header


def _changed(header: ShardHeader, how: str) -> StaleIndex:
    return StaleIndex(
        f"the shard '{header.path}' was changed after it was indexed: {how}; if that was meant, index it anew: "
        f"ldm index shards='{header.path}' rebuild=true"
    )


def _read(shard: Path, file: Path) -> ShardHeader | None:
    try:
        with file.open("rb") as opened:
            first = opened.read(16)
            if first[:8] != MAGIC:
                return None
            length = int.from_bytes(first[8:], "little")
            said: dict[str, Any] = json.loads(opened.read(length))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except ValueError:
        return None  # damaged: scanned anew
    said["columns"] = {name: tuple(column) for name, column in said["columns"].items()}
    return ShardHeader(path=shard, file=file, start=_aligned(16 + length), **said)


def _write_all(shards: list[Path], *, rebuild: bool) -> None:
    if os.getpid() % 2 and not rebuild:  # another process may do the same: meet it in the middle
        shards = shards[::-1]
    num = min(len(shards), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    work = _write_anew if rebuild else _write_missing
    if num == 1 or sum(path.stat().st_size for path in shards) < _ALONE:
        for path in shards:
            work(path)
        return
    with ProcessPoolExecutor(num) as pool:
        list(pool.map(work, shards))


def _write_missing(shard: Path) -> None:
    if read_header_of(shard, check=False) is None:
        write_index(shard)


def _write_anew(shard: Path) -> None:
    write_index(shard)


def write_index(shard: Path) -> Path:
    """Scan a shard and put its index down; returns where."""
    header, columns = _laid_out(scan(shard))
    if not os.access(shard.parent, os.W_OK):
        return _put(index_path(shard, cache=True), header, columns)
    try:
        return _put(index_path(shard), header, columns)
    except OSError:  # a file system that is mounted read-only
        return _put(index_path(shard, cache=True), header, columns)


def _laid_out(found: Scan) -> tuple[bytes, list[tuple[int, np.ndarray]]]:
    """The header and the columns with their places after it."""
    blob = b"".join(found.keys)
    columns = {
        **found.columns,
        "key_ends": np.cumsum([len(key) for key in found.keys], dtype=np.int64),
        "keys": np.frombuffer(blob, np.uint8),
        "problems": np.frombuffer(json.dumps(found.problems).encode(), np.uint8),
    }
    digest = hashlib.blake2b(blob, digest_size=16)
    for name in ("key_ends", "offsets", "sizes"):
        digest.update(np.ascontiguousarray(columns[name]).tobytes())
    placed, places, at = [], {}, 0
    for name, column in columns.items():
        places[name] = (column.dtype.str, list(column.shape), at)
        placed.append((at, column))
        at = _aligned(at + column.nbytes)
    header = {
        "count": len(found.keys),
        "with_text": {
            "txt" if name == "caption_length" else name.removeprefix("text."): int((column > 0).sum())
            for name, column in found.columns.items()
            if name == "caption_length" or name.startswith("text.")
        },
        "digest": digest.hexdigest(),
        "size": found.size,
        "mtime_ns": found.mtime_ns,
        "sha256": found.sha256,
        "num_problems": len(found.problems),
        "columns": places,
        "values": found.values,
        "dropped": found.dropped,
    }
    return json.dumps(header).encode(), placed


def _put(file: Path, header: bytes, columns: list[tuple[int, np.ndarray]]) -> Path:
    start = _aligned(16 + len(header))
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(
        f".{file.name}.{os.getpid()}.partial"
    )  # of this process: others may write the same
    try:
        with partial.open("wb") as out:
            out.write(MAGIC + len(header).to_bytes(8, "little") + header)
            for at, column in columns:
                out.write(b"\0" * (start + at - out.tell()))
                out.write(np.ascontiguousarray(column).tobytes())
            out.write(b"\0" * (-out.tell() % _ALIGNED))
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return file


def _aligned(at: int) -> int:
    return -(-at // _ALIGNED) * _ALIGNED
