"""sha256 of files, and of what becomes one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, BinaryIO


class Hashing:
    """A file that counts and hashes what it is given: compared later is what was meant, not what arrived."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.hash = file, 0, hashlib.sha256()
        self.failure: BaseException | None = None  # torch would tell it in other words

    def write(self, data: Any) -> int:
        try:
            self.file.write(data)
        except BaseException as error:
            self.failure = error
            raise
        self.hash.update(data)
        size = len(data)
        self.size += size
        return size

    def flush(self) -> None:
        self.file.flush()

    def fileno(self) -> int:
        return self.file.fileno()

    def tell(self) -> int:
        return self.size

    def close(self) -> None:
        """Nothing: who opened the file closes it."""

    def record(self) -> dict[str, Any]:
        """Size and hash, as manifests have them."""
        return {"bytes": self.size, "sha256": self.hash.hexdigest()}


def file_hash(path: str | Path) -> str:
    """sha256 of a file's bytes, as 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
