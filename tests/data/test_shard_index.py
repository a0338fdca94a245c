"""An index is made once, and trusted only as long as its shard is what it was."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ldm.data import shard_index
from ldm.data.index import build_index
from ldm.data.shard_index import StaleIndex, load_headers
from ldm.data.shards import CACHE, ShardWriter, find_shards, index_path
from tests.data.made import encoded, numbered, tar


def test_an_index_is_made_at_first_use_and_then_only_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tar(tmp_path / "a.tar", numbered(3))
    first = build_index([path])
    assert index_path(path).is_file() and not list(tmp_path.glob("*.partial"))
    monkeypatch.setattr(shard_index, "scan", lambda path: pytest.fail("scanned again"))
    second = build_index([path])
    assert [second.key(i) for i in range(3)] == [first.key(i) for i in range(3)]
    assert second.fingerprint == first.fingerprint


def test_a_shard_that_was_changed_is_an_error_until_it_is_indexed_anew(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", numbered(3))
    build_index([path])
    tar(path, numbered(40))
    with pytest.raises(StaleIndex, match=r"a.tar' was changed after it was indexed.*bytes.*rebuild=true"):
        build_index([path])
    load_headers([path], rebuild=True)
    assert len(build_index([path])) == 40
    data = bytearray(path.read_bytes())
    data[600] ^= 1  # same length, another byte
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))
    with pytest.raises(StaleIndex, match="SHA-256"):
        build_index([path])


def test_a_copy_with_another_time_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar(tmp_path / "a.tar", numbered(3))
    build_index([path])
    os.utime(path, ns=(1, 1))
    build_index([path])
    monkeypatch.setattr(shard_index, "tar_hash", lambda path: pytest.fail("hashed again"))
    assert len(build_index([path])) == 3


def test_verifying_finds_what_size_and_time_hide(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", numbered(3))
    build_index([path])
    before, data = path.stat(), bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    load_headers([path])
    with pytest.raises(StaleIndex, match="SHA-256"):
        load_headers([path], verify=True)


def test_a_read_only_folder_has_its_indexes_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tar(tmp_path / "a.tar", numbered(3))
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda where, mode: False)  # root may write anywhere
    assert len(build_index([path])) == 3
    assert not index_path(path).exists() and index_path(path, cache=True).is_file()
    monkeypatch.setattr(shard_index, "scan", lambda path: pytest.fail("scanned again"))
    assert len(build_index([path])) == 3


@pytest.mark.parametrize("left", [0, 5, 12, 200])
def test_a_damaged_index_is_made_anew(tmp_path: Path, left: int) -> None:
    path = tar(tmp_path / "a.tar", numbered(3))
    build_index([path])
    index_path(path).write_bytes(index_path(path).read_bytes()[:left])
    assert len(build_index([path])) == 3


def test_several_processes_make_the_same_indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        folder = tmp_path / name
        with ShardWriter(folder, samples_per_shard=4) as writer:
            for i in range(20):
                writer.write(b"picture" * i, "png", f"caption {i}", {"i": i})
    alone = build_index(find_shards(tmp_path / "a"))
    monkeypatch.setattr(shard_index, "_ALONE", 0)
    assert build_index(find_shards(tmp_path / "b")).fingerprint == alone.fingerprint


def test_what_the_pictures_headers_and_the_json_say_is_there_without_reading_them_again(
    tmp_path: Path,
) -> None:
    grey = np.zeros((3, 5), np.uint8)
    with ShardWriter(tmp_path, samples_per_shard=2) as writer:
        writer.write(encoded(grey, "PNG"), "png", " fünf ", {"score": 1.5, "nsfw": True, "tags": ["x"]})
        writer.write(encoded(grey, "JPEG"), "jpg", "", {"score": 2})
        writer.write(b"<html>", "png", "404", {"language": "en"})
    index = build_index(find_shards(tmp_path), missing="empty")
    assert index.column("width").tolist() == [5, 5, 0] and index.column("height").tolist() == [3, 3, 0]
    assert index.column("format").tolist() == [2, 1, 0]
    assert index.column("caption_length").tolist() == [4, 0, 3]
    assert index.column("txt_size").tolist() == [7, 0, 3]
    np.testing.assert_array_equal(index.column("json.score"), [1.5, 2, np.nan])
    np.testing.assert_array_equal(index.column("json.nsfw"), [1, np.nan, np.nan])
    with pytest.raises(KeyError, match=r"no column 'json.tags'; there are width.*json.nsfw, json.score"):
        index.column("json.tags")


def test_keys_tell_apart_shards_of_one_name(tmp_path: Path) -> None:
    paths = []
    for folder in ("x/a", "y/a"):
        (tmp_path / folder).mkdir(parents=True)
        paths.append(tar(tmp_path / folder / "0.tar", numbered(2)))
    index = build_index(paths)
    assert [index.key(i) for i in range(4)] == ["x/a/0/s0", "x/a/0/s1", "y/a/0/s0", "y/a/0/s1"]
    assert [index.find(index.key(i)) for i in range(4)] == list(range(4))
    assert build_index(paths[:1], prefix="photos").key(1) == "photos/0/s1"


def test_more_shards_than_files_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ShardWriter(tmp_path, samples_per_shard=1) as writer:
        for i in range(12):
            writer.write(b"", "png", f"caption {i}", {})
    monkeypatch.setattr("ldm.data.index._OPEN", 3)
    index = build_index(find_shards(tmp_path))
    for i in (0, 5, 11, 3, 0, 7, 11, 10):
        assert index.read(i, "txt") == f"caption {i}".encode()
    assert len(index._files) == 3


def test_a_shard_that_shrinks_meanwhile_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", numbered(3))
    index = build_index([path])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(OSError, match="shorter"):
        index.read(2, "txt")


def test_a_shard_that_is_written_anew_loses_its_old_index(tmp_path: Path) -> None:
    for num in (2, 3):
        with ShardWriter(tmp_path) as writer:
            for i in range(num):
                writer.write(b"", "png", f"caption {i}", {})
        assert len(build_index(find_shards(tmp_path))) == num
        (tmp_path / "00000.tar").unlink()
