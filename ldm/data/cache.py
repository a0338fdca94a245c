"""Arrays in one file, written row by row and read where they lie: safetensors, mapped.

Any program that knows the format can open these files, and nothing in them is ever run. They are written under another
name and get their own when they are whole, so a file that is there is complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from ldm.data.shards import written_whole

Blank = tuple[type | np.dtype, tuple[int, ...]]
"""(dtype, shape) of an array that is filled while its file is open."""

_NAMES = {
    "F16": "f2",
    "F32": "f4",
    "F64": "f8",
    "U8": "u1",
    "I16": "i2",
    "I32": "i4",
    "I64": "i8",
    "BOOL": "?",
}
_CODES = {np.dtype(code): name for name, code in _NAMES.items()}
_ALIGNED = 64


@contextmanager
def written(
    path: Path, arrays: Mapping[str, np.ndarray | Blank], metadata: Mapping[str, object]
) -> Iterator[dict[str, np.ndarray]]:
    """A new file's arrays, to be filled inside the block; the file is there when the block ends well.

    Args:
        path: where to; what is there is replaced.
        arrays: by name: what stands in the file, or the dtype and shape of what is going to.
        metadata: what json can hold.
    """
    kinds = {
        name: (x.dtype, x.shape) if isinstance(x, np.ndarray) else (np.dtype(x[0]), x[1])
        for name, x in arrays.items()
    }
    # Wide elements first, one array directly after the other: so each is aligned, as the format asks for.
    order = sorted(kinds, key=lambda name: (-kinds[name][0].itemsize, name))
    header: dict[str, object] = {"__metadata__": {name: json.dumps(x) for name, x in metadata.items()}}
    at = 0
    for name in order:
        dtype, shape = kinds[name]
        end = at + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNED)
    with written_whole(path) as partial:
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
        data = np.memmap(partial, np.uint8, mode="r+", offset=0)
        views = {name: _view(data[8 + len(text) :], header[name]) for name in order}
        for name, x in arrays.items():
            if isinstance(x, np.ndarray):
                views[name][...] = x
        yield views
        data.flush()


@dataclass(frozen=True)
class CacheFile:
    """A file that ``written`` made, mapped: nothing of an array is read before it is asked for.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no such file, or was cut.
    """

    path: Path

    @cached_property
    def _header(self) -> tuple[int, dict]:
        with self.path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > 1 << 26:
                raise ValueError(f"{self.path} is no safetensors file")
            try:
                return 8 + length, json.loads(file.read(length))
            except ValueError:
                raise ValueError(f"{self.path} is no safetensors file, or was cut") from None

    @cached_property
    def metadata(self) -> dict:
        return {name: json.loads(text) for name, text in self._header[1].get("__metadata__", {}).items()}

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name, read-only in effect: what is written to them is not written to the file."""
        start, header = self._header
        size = self.path.stat().st_size
        entries = {name: x for name, x in header.items() if name != "__metadata__"}
        if size < start + max((x["data_offsets"][1] for x in entries.values()), default=0):
            raise ValueError(f"{self.path} was cut: copy it anew, or remove it to have it made again")
        # torch's map, and not numpy's: it keeps no file open, of which a process may have about a thousand.
        data = torch.from_file(str(self.path), size=size, dtype=torch.uint8).numpy()[start:]
        return {name: _view(data, x) for name, x in entries.items()}


def _view(data: np.ndarray, entry: object) -> np.ndarray:
    assert isinstance(entry, dict)
    begin, end = entry["data_offsets"]
    return np.asarray(data[begin:end]).view(_NAMES[entry["dtype"]]).reshape(entry["shape"])
