"""Where each sample lies in its tar: random access to plain shards, without unpacking or rewriting them.

Only the headers are read. What does not form a sound sample (a cut tar, a picture without caption, a member that
stands there twice) is listed with its reason and never paired with something else.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tarfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

PICTURES = frozenset({"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "avif", "ppm"})
PARTS = ("picture", "txt", "json")
_BLOCK = 512


@dataclass(frozen=True)
class Skipped:
    """Something in a shard that is not used, and why. ``key`` is empty where it concerns the whole shard."""

    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}, {self.key}: {self.reason}" if self.key else f"{self.shard}: {self.reason}"


@dataclass(frozen=True)
class SampleIndex:
    """The sound samples of some shards, in the order in which they stand there."""

    shards: list[Path]
    shard: np.ndarray  # (N,) int32, the place of each sample's shard in ``shards``
    names: np.ndarray  # (N,) bytes, the sample's key in its shard, UTF-8
    spans: (
        np.ndarray
    )  # (N, 3, 2) int64, offset and size of picture, txt and json; size -1 where there is none
    skipped: list[Skipped]
    _maps: dict[int, mmap.mmap] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.shard)

    def key(self, i: int) -> str:
        """The sample's name over all shards, e.g. ``00003/000030017``: what its randomness is tied to."""
        return f"{self.shards[self.shard[i]].stem}/{self.names[i].decode()}"

    def find(self, key: str) -> int:
        """The place of the sample called ``key``; a search through all, for rare use.

        Raises:
            KeyError: there is none.
        """
        stem, _, name = key.partition("/")
        for i in np.flatnonzero(self.names == name.encode()).tolist():
            if self.shards[self.shard[i]].stem == stem:
                return i
        raise KeyError(key)

    def read(self, i: int, part: str) -> bytes | None:
        """The bytes of one member of sample ``i``: "picture", "txt" or "json"; None where it has none."""
        offset, size = self.spans[i, PARTS.index(part)].tolist()
        if size < 0:
            return None
        shard = int(self.shard[i])
        if shard not in self._maps:  # opened on first use, so in each worker process for itself
            with self.shards[shard].open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if offset + size > len(self._maps[shard]):
            raise OSError(f"{self.shards[shard]} has become shorter since it was indexed; start again")
        return self._maps[shard][offset : offset + size]

    @property
    def fingerprint(self) -> str:
        """A hash over shard names, keys and the place and size of every member; not over the contents."""
        digest = hashlib.blake2b(digest_size=16)
        for part in ([path.name for path in self.shards], self.names.tolist()):
            digest.update(repr(part).encode())
        for array in (self.shard, self.spans):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_maps": {}}  # a memory map does not travel to another process


def build_index(shards: Sequence[Path], *, caption_part: str = "txt") -> SampleIndex:
    """Index shards by their headers, several at a time (about 10,000 samples in a quarter of a second).

    Args:
        shards: plain tar files.
        caption_part: the member that holds the caption, "txt" or "json"; a sample without it is skipped.

    Raises:
        ValueError: not one sound sample in all the shards; the message shows the first reasons.
    """
    # A later issue can keep what _scan returns beside each shard; nothing else would change.
    with ThreadPoolExecutor(max_workers=min(32, 2 * (os.cpu_count() or 1))) as pool:
        scans = list(pool.map(lambda path: _scan(path, caption_part), shards))
    samples = [(number, name, spans) for number, (found, _) in enumerate(scans) for name, spans in found]
    skipped = [skip for _, skips in scans for skip in skips]
    if not samples:
        listed = "; ".join(map(str, skipped[:3]))
        raise ValueError(f"no sound sample in {len(shards)} shards ({listed or 'they are empty'})")
    return SampleIndex(
        shards=list(shards),
        shard=np.array([number for number, _, _ in samples], dtype=np.int32),
        names=np.array([name.encode(errors="backslashreplace") for _, name, _ in samples]),
        spans=np.array([spans for _, _, spans in samples], dtype=np.int64),
        skipped=skipped,
    )


Spans = list[tuple[int, int]]


def _scan(path: Path, caption_part: str) -> tuple[list[tuple[str, Spans]], list[Skipped]]:
    """The sound samples of one shard and what was wrong with the others."""
    parts: dict[str, dict[str, tuple[int, int]]] = {}
    wrong: dict[str, str] = {}
    members, damage = _members(path)
    for name, offset, size in members:
        folder, _, base = name.rpartition("/")
        stem, _, extension = base.partition(".")  # webdataset's rule: the key ends at the first dot
        key = f"{folder}/{stem}" if folder else stem
        extension = extension.lower()
        part = "picture" if extension in PICTURES else extension
        sample = parts.setdefault(key, {})
        if part in sample:
            wrong[key] = f"has more than one {part}"
        elif part in PARTS:
            sample[part] = (offset, size)
    for key, sample in parts.items():
        for needed in ("picture", caption_part):
            if needed not in sample:
                wrong.setdefault(
                    key, f"has no {'caption (' + needed + ')' if needed != 'picture' else needed}"
                )
    skipped = [Skipped(path.name, key, reason) for key, reason in wrong.items()]
    if damage:
        skipped.append(Skipped(path.name, "", damage))
    sound = [
        (key, [sample.get(part, (0, -1)) for part in PARTS])
        for key, sample in parts.items()
        if key not in wrong
    ]
    return sound, skipped


def _members(path: Path) -> tuple[list[tuple[str, int, int]], str]:
    """(name, offset, size) of each whole file in a tar, and what is wrong with the tar ("" if nothing)."""
    members: list[tuple[str, int, int]] = []
    length = path.stat().st_size
    if length == 0:
        return [], "the shard is an empty file"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar:
        at = 0
        while at + _BLOCK <= length:
            header = tar[at : at + _BLOCK]
            if header.count(0) == _BLOCK:
                whole_end = at + 2 * _BLOCK <= length
                return members, "" if whole_end else "the tar is cut in its end mark"
            try:
                kind, size = header[156:157], _number(header[124:136])
                if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 32:
                    raise ValueError("checksum")
            except ValueError:
                return members, f"no tar header at byte {at}: the rest of the shard is not read"
            if (
                kind in b"LKxgS"
            ):  # long names, PAX records, sparse files: rare, so left to the standard library
                return _members_by_tarfile(path, length)
            if at + _BLOCK + size > length:
                return members, f"the tar is cut in '{_name(header)}', at byte {length}"
            if kind in (b"0", b"\0"):
                members.append((_name(header), at + _BLOCK, size))
            at += _BLOCK + -(-size // _BLOCK) * _BLOCK
    return members, f"the tar is cut after {len(members)} members: it has no end mark"


def _members_by_tarfile(path: Path, length: int) -> tuple[list[tuple[str, int, int]], str]:
    members: list[tuple[str, int, int]] = []
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isreg() and not member.issparse():
                    if member.offset_data + member.size > length:
                        return members, f"the tar is cut in '{member.name}', at byte {length}"
                    members.append((member.name, member.offset_data, member.size))
            end = tar.offset  # the standard library takes a tar that just stops for a whole one
    except (tarfile.TarError, OSError, EOFError) as error:
        return members, f"the tar is damaged: {error}"
    return members, "" if end + 2 * _BLOCK <= length else "the tar is cut: it has no end mark"


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _number(digits: bytes) -> int:
    """A header's number: octal text, or binary where the first bit is set (files of 8 GiB and more)."""
    if digits[0] & 0x80:
        return int.from_bytes(digits, "big") & ((1 << (8 * len(digits) - 1)) - 1)
    return int(digits.strip(b" \0") or b"0", 8)


def report(skipped: Iterable[Skipped], *, limit: int = 5) -> str:
    """One readable paragraph: how many were skipped, and the first of them."""
    skips = list(skipped)
    lines = [f"  {skip}" for skip in skips[:limit]]
    more = [f"  ... and {len(skips) - limit} more"] if len(skips) > limit else []
    return "\n".join([f"{len(skips)} things in the shards are not used:", *lines, *more])
