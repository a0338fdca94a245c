"""A cache has one file for each shard it was made from; this says which, and for whom.

A file's name holds the shard's name and a hash over what is made of it: its contents, which samples are taken, and in
which sizes they come out. So a shard that is new or has changed gets a new file, the others keep theirs, and nothing
stale is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.data.index import SampleIndex


@dataclass(frozen=True)
class Part:
    """The samples of one shard."""

    name: str  # of the shard, as in keys
    samples: range  # their numbers in the data set
    digest: str

    def file(self, folder: Path) -> Path:
        """Where in a cache's folder its file lies."""
        return folder / f"{self.name}-{self.digest}.safetensors"


def parts_of(index: SampleIndex, depends_on: Callable[[range], bytes]) -> list[Part]:
    """The parts of a data set, in its order.

    Args:
        index: Of the data set.
        depends_on: Samples of a shard -> what else is made of them depends on.
    """
    found = []
    for name, header, rows, end, count in zip(
        index.names, index.headers, index.rows, index.ends.tolist(), index.counts.tolist(), strict=True
    ):
        if count:
            samples = range(end - count, end)
            digest = hashlib.blake2b(f"{header.sha256}\0".encode(), digest_size=8)
            digest.update(b"all" if rows is None else rows.tobytes())
            digest.update(depends_on(samples))
            found.append(Part(name, samples, digest.hexdigest()))
    return found


def missing(parts: Sequence[Part], folder: Path) -> list[Part]:
    """Those whose file is not there."""
    here = set(folder.rglob("*.safetensors")) if folder.is_dir() else set()
    return [part for part in parts if part.file(folder) not in here]
