"""Many strings in two arrays, read one by one: no Python object for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def packed(name: str, strings: Sequence[str]) -> dict[str, np.ndarray]:
    """All strings' bytes in UTF-8, and where each ends; as two columns of a file."""
    encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
    return {
        name: np.frombuffer(b"".join(encoded), np.uint8),
        f"{name}_ends": np.cumsum([len(one) for one in encoded], dtype=np.int64),
    }


class Strings(Sequence[str]):
    """What ``packed`` made, as it was."""

    def __init__(self, columns: Mapping[str, np.ndarray], name: str) -> None:
        # Memory views: an element of an array would be an object of numpy's, several times slower to make.
        self._all_ends = columns[f"{name}_ends"]  # (n,)
        self._bytes, self._ends = columns[name].data, self._all_ends.data

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> str:  # type: ignore[override]  # no slices
        return str(self._bytes[self._ends[i - 1] if i else 0 : self._ends[i]], "utf-8", "surrogatepass")

    def take(self, rows: np.ndarray) -> list[str]:
        """The strings at ``rows`` (n,): several times faster than one by one."""
        begins, ends = spans(self._all_ends, rows)
        text = self._bytes
        return [
            str(text[begin:end], "utf-8", "surrogatepass")
            for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
        ]


def spans(ends: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the stretches at ``rows`` (n,) begin and end, each (n,); one after the other they end at ``ends``."""
    return np.where(rows > 0, ends[rows - 1], 0), ends[rows]
