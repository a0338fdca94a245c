"""The files that Weights & Biases writes when it is offline: a log of records, each a protocol buffer.

The log has LevelDB's layout: blocks of 32 KiB, in them pieces with a checksum, a length and a kind, and a record that
does not fit into its block goes on in the next. See LevelDB's doc/log_format.md; W&B has a header of its own and
zlib's crc32. Read and written here because wandb itself can do neither from Python.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

HEADER = struct.pack("<4sHB", b":W&B", zlib.crc32(b"Weights & Biases") & 0xFFFF, 0)
BLOCK = 32 * 1024
PIECE = struct.Struct("<IHB")  # checksum, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_records(path: Path) -> Iterator[Any]:
    """The ``wandb_internal_pb2.Record`` of a file, as far as it goes: a run that was killed ends in the middle of one.

    Raises:
        ValueError: It is no such file.
    """
    messages: Any = import_module("wandb.proto.wandb_internal_pb2")
    for data in read_log(path):
        yield messages.Record.FromString(data)


def write_records(path: Path, records: Iterable[Any]) -> None:
    """Records, numbered anew."""

    def numbered() -> Iterator[bytes]:
        for number, record in enumerate(records, start=1):
            record.num = number
            yield record.SerializeToString()

    write_log(path, numbered())


def read_log(path: Path) -> Iterator[bytes]:
    """See ``read_records``."""
    data = path.read_bytes()
    if not data.startswith(HEADER):
        raise ValueError(f"{path} is not a file that wandb wrote when it was offline")
    at, waiting = len(HEADER), b""
    while True:
        if (left := BLOCK - at % BLOCK) < PIECE.size:  # too little for a piece: filled up
            at += left
        if at + PIECE.size > len(data):
            return
        checksum, length, kind = PIECE.unpack_from(data, at)
        content = data[at + PIECE.size : at + PIECE.size + length]
        if len(content) < length or checksum != _checksum(kind, content):
            return
        at += PIECE.size + length
        waiting = content if kind in (FULL, FIRST) else waiting + content
        if kind in (FULL, LAST):
            yield waiting


def write_log(path: Path, records: Iterable[bytes]) -> None:
    """See ``write_records``."""
    with path.open("wb") as file:
        file.write(HEADER)
        for record in records:
            first = True
            while True:
                left = BLOCK - file.tell() % BLOCK
                if left < PIECE.size:
                    file.write(bytes(left))
                    left = BLOCK
                content, record = record[: left - PIECE.size], record[left - PIECE.size :]
                kind = (FIRST if record else FULL) if first else (MIDDLE if record else LAST)
                file.write(PIECE.pack(_checksum(kind, content), len(content), kind) + content)
                if not record:
                    break
                first = False


def _checksum(kind: int, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(bytes([kind])))
