"""One tar -> columns: where each sample's members lie, and what can be known of them without decoding a picture.

What does not form a sound sample (a member that stands there twice, a text without a picture, a name that leads out
of the folder) is listed with its reason and never paired with something else.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.headers import FORMATS, UNREADABLE, read_header
from ldm.data.tar import Member, members

PICTURES = frozenset({"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "avif", "ppm"})
PARTS = ("picture", "txt", "json")
_ENDINGS = PICTURES | {"txt", "json"}
_NOWHERE = (0, -1)  # place and size of a part that is not there
_PICKLES = frozenset(
    {"pkl", "pickle", "pyd", "pth", "pt", "npz"}
)  # what opens them can run code: nothing here does
_FIRST = 1 << 16  # bytes of a picture in which its size nearly always stands
_MOST_FIELDS = 64
_MOST_VALUES = 255  # different values of a text field that is kept
_LONGEST_VALUE = 64


@dataclass(frozen=True)
class Scan:
    """What one shard holds."""

    size: int  # of the tar, in bytes
    mtime_ns: int
    sha256: str
    keys: list[bytes]  # N, UTF-8
    columns: dict[str, np.ndarray]  # each (N, ...)
    values: dict[str, list[str]]  # of a text field: what its codes stand for
    dropped: list[str]  # text fields with too many different values
    problems: list[tuple[str, str]]  # key and reason; the key is empty where it concerns the whole shard


def scan(path: Path) -> Scan:
    """Read a shard's headers, its pictures' headers and its json once from front to back.

    Raises:
        OSError: it cannot be read.
    """
    state = path.stat()
    if state.st_size == 0:
        nothing = memoryview(b"")
        return _columns(
            state, hashlib.sha256().hexdigest(), nothing, {}, [("", "the shard is an empty file")]
        )
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar:
        found, damage = members(path, tar)
        samples, problems = samples_of(found)
        if damage:
            problems.append(("", damage))
        with memoryview(tar) as view:  # slices of it are no copies
            return _columns(state, hashlib.sha256(view).hexdigest(), view, samples, problems)


def tar_hash(path: Path) -> str:
    """SHA-256 of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_and_ending(name: str) -> tuple[str, str]:
    """What a member's name says: the sample it belongs to, and its ending in lower case.

    webdataset ends a key at the first dot. Here it ends at the last one where a known ending follows, so that
    ``photo.v1.jpg`` and ``photo.v2.jpg`` are two pictures and each finds its own ``.txt``.
    """
    folder, _, base = name.rpartition("/")
    stem, _, ending = base.rpartition(".")
    if not stem or ending.lower() not in _ENDINGS:
        stem, _, ending = base.partition(".")
    return (f"{folder}/{stem}" if "/" in name else stem), ending.lower()


_Spans = dict[str, tuple[int, int]]


def samples_of(found: list[Member]) -> tuple[dict[str, _Spans], list[tuple[str, str]]]:
    """Members by their sample, and what was wrong with the others."""
    samples: dict[str, _Spans] = {}
    wrong: dict[str, str] = {}
    pickles = 0
    for name, offset, size in found:
        key, ending = key_and_ending(name)
        part = "picture" if ending in PICTURES else ending
        if part.rpartition(".")[2] in _PICKLES:
            pickles += 1
            continue
        sample = samples.setdefault(key, {})
        if part in sample:
            wrong[key] = f"has more than one {part}"
        elif part in PARTS:
            sample[part] = (offset, size)
        if size >= 2**31:
            wrong[key] = f"its {part} has {size:,} bytes"
    for key, sample in samples.items():
        if key.startswith("/") or ".." in key.split("/"):
            wrong[key] = "its name leads out of the folder"
        elif "picture" not in sample:
            wrong.setdefault(key, "has no picture")
    problems = list(wrong.items())
    if pickles:
        problems.append(("", f"{pickles} members are pickles: they are never opened"))
    return {key: sample for key, sample in samples.items() if key not in wrong}, problems


def _columns(
    state: os.stat_result,
    sha256: str,
    tar: memoryview,
    samples: dict[str, _Spans],
    problems: list[tuple[str, str]],
) -> Scan:
    num = len(samples)
    # Lists, and arrays only at the end: to put numbers into an array one by one takes several times as long.
    places: list[tuple[int, int]] = []  # of each sample's parts
    kinds: list[int] = []
    shapes: list[tuple[int, int]] = []
    lengths: list[int] = []
    fields = _Fields(num)
    for row, sample in enumerate(samples.values()):
        places += [sample.get(part, _NOWHERE) for part in PARTS]
        at, size = sample["picture"]
        header = read_header(tar[at : at + min(size, _FIRST)])
        if header is UNREADABLE and size > _FIRST:
            header = read_header(tar[at : at + size])
        if max(header.width, header.height) >= 2**31:
            header = UNREADABLE
        kinds.append(FORMATS.index(header.format))
        shapes.append((header.width, header.height))
        length = -1
        if "txt" in sample:
            at, size = sample["txt"]
            length = len(str(tar[at : at + size], "utf-8", "replace").removeprefix("\ufeff").strip())
        lengths.append(length)
        if "json" in sample:
            at, size = sample["json"]
            fields.add(row, bytes(tar[at : at + size]))
    values, codes, dropped = fields.texts()
    spans = np.array(places, np.int64).reshape(num, len(PARTS), 2)
    shape = np.array(shapes, np.int32).reshape(num, 2)
    columns: dict[str, np.ndarray] = {
        "offsets": spans[..., 0].copy(),
        "sizes": spans[..., 1].astype(np.int32),
        "format": np.array(kinds, np.uint8),
        "width": shape[:, 0].copy(),
        "height": shape[:, 1].copy(),
        "caption_length": np.array(lengths, np.int32),
        **{f"text.{name}": longest for name, longest in fields.lengths.items()},
        **{f"json.{name}": numbers for name, numbers in fields.numbers.items()},
        **{f"json.{name}": column for name, column in codes.items()},
    }
    return Scan(
        size=state.st_size,
        mtime_ns=state.st_mtime_ns,
        sha256=sha256,
        keys=[key.encode("utf-8", "backslashreplace") for key in samples],
        columns=columns,
        values={f"json.{name}": listed for name, listed in values.items()},
        dropped=dropped,
        problems=problems,
    )


class _Fields:
    """The json's numbers, its texts as far as they are labels ("en", "cc0"), and how long all its texts are."""

    def __init__(self, num: int) -> None:
        self.num = num
        self.numbers: dict[str, np.ndarray] = {}  # (N,) float64, NaN where the field is missing
        self.lengths: dict[
            str, np.ndarray
        ] = {}  # (N,) int32 characters of the longest text, -1 where there is none
        self._texts: dict[str, dict[int, str] | None] = {}  # None: no label

    def add(self, row: int, data: bytes) -> None:
        try:
            meta = json.loads(data)
        except (ValueError, RecursionError):
            return  # whoever needs a caption from it will say so
        if isinstance(meta, dict):
            for name, value in meta.items():
                self._put(row, name, value)

    def _put(self, row: int, name: str, value: Any) -> None:
        longest = -1
        if isinstance(value, str):
            longest = len(value.strip())
        elif isinstance(value, list) and value and all(isinstance(text, str) for text in value):
            longest = max(len(text.strip()) for text in value)
        if longest >= 0:
            if name not in self.lengths and len(self.lengths) < _MOST_FIELDS:
                self.lengths[name] = np.full(self.num, -1, np.int32)
            if name in self.lengths:
                self.lengths[name][row] = longest
        if isinstance(value, (bool, int, float)):  # as a union it takes four times as long
            column = self.numbers.get(name)
            if column is None:
                if len(self.numbers) == _MOST_FIELDS:
                    return
                column = self.numbers[name] = np.full(self.num, np.nan)
            column[row] = value if abs(value) < 1e300 else math.copysign(1e300, value)
        elif isinstance(value, str):
            texts = self._texts.setdefault(name, {} if len(self._texts) < _MOST_FIELDS else None)
            if texts is not None:
                if len(value) > _LONGEST_VALUE or (len(texts) == 2_000 and len({*texts.values()}) > 255):
                    self._texts[name] = None
                else:
                    texts[row] = value

    def texts(self) -> tuple[dict[str, list[str]], dict[str, np.ndarray], list[str]]:
        """Values and codes (0: missing) of each field that holds labels, and the names of the others."""
        values, codes, dropped = {}, {}, []
        for name, texts in self._texts.items():
            listed = sorted({*texts.values()}) if texts is not None else []
            if name in self.numbers:  # now a text, now a number
                continue
            if texts is None or len(listed) > _MOST_VALUES:
                dropped.append(name)
                continue
            place = {value: code for code, value in enumerate(listed, start=1)}
            column = np.zeros(self.num, np.uint8)
            for row, value in texts.items():
                column[row] = place[value]
            values[name], codes[name] = listed, column
        return values, codes, dropped
