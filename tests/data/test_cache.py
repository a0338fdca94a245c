"""One file of arrays: safetensors for everybody, whole or not there, and read where it lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ldm.data.cache import CacheFile, written
from ldm.data.strings import Strings, packed

TEXTS = ["", "a", "caf\u00e9", "\u732b" * 300, "", "z"]
ARRAYS = {
    "bytes": np.frombuffer(b"hello", np.uint8),
    "numbers": np.arange(7),
    "flags": np.array([True, False, True]),
    "none": np.zeros((0, 3), np.int32),
    "half": np.linspace(-1, 1, 6, dtype=np.float16).reshape(2, 3),
    **packed("texts", TEXTS),
}


def test_others_read_what_is_written_and_so_do_we(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.safetensors"
    with written(path, {**ARRAYS, "later": (np.float32, (3, 2))}, {"made": {"by": ["me", 1]}}) as arrays:
        assert not path.exists()
        arrays["later"][1] = 5
    expected = {**ARRAYS, "later": np.array([[0, 0], [5, 5], [0, 0]], np.float32)}
    file = CacheFile(path)
    for found in (load_file(path), file.arrays):
        assert found.keys() == expected.keys()
        for name, x in expected.items():
            assert found[name].dtype == x.dtype
            np.testing.assert_array_equal(found[name], x)
    assert file.metadata == {"made": {"by": ["me", 1]}}
    assert all(x.ctypes.data % x.dtype.itemsize == 0 for x in file.arrays.values())
    texts = Strings(file.arrays, "texts")
    assert list(texts) == TEXTS
    rows = np.array([len(TEXTS) - 1, 0, 0, *range(len(TEXTS))], np.int32)
    assert texts.take(rows) == [TEXTS[row] for row in rows] and texts.take(rows[:0]) == []


def test_a_file_that_was_not_finished_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(KeyboardInterrupt), written(path, ARRAYS, {}):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with written(path, ARRAYS, {}):
        pass
    whole = path.read_bytes()
    for cut in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"a\.safetensors (is no safetensors file|was cut)"):
            _ = CacheFile(path).arrays
    path.write_bytes(b"<html>" * 100)
    with pytest.raises(ValueError, match="is no safetensors file"):
        _ = CacheFile(path).arrays
