"""Shards: what goes in comes out, whole or not at all, and a missing one is named."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from ldm.data.shards import ShardWriter, find_shards, sample_key, shard_path


def fill(folder: Path, num: int, *, stop_at: int | None = None, samples_per_shard: int = 3) -> None:
    with ShardWriter(folder, samples_per_shard=samples_per_shard) as writer:
        for i in range(num):
            if i == stop_at:
                raise KeyboardInterrupt
            writer.write(b"picture %d" % i, ".PNG", f"caption {i} é", {"i": i})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_shard_holds_the_members_of_each_sample_side_by_side(tmp_path: Path) -> None:
    fill(tmp_path, 4)
    with tarfile.open(tmp_path / "00001.tar") as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
    assert list(members) == ["000010000.json", "000010000.png", "000010000.txt"]
    assert members["000010000.png"] == b"picture 3"
    assert members["000010000.txt"].decode() == "caption 3 é"
    assert json.loads(members["000010000.json"]) == {"i": 3}


@pytest.mark.parametrize("stop_at", range(8))
def test_interrupted_and_resumed_writing_ends_in_the_same_bytes(tmp_path: Path, stop_at: int) -> None:
    fill(tmp_path / "whole", 8)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "cut", 8, stop_at=stop_at)
    left = list(contents(tmp_path / "cut")) if stop_at else []
    assert left == [f"{i:05d}.tar" for i in range(stop_at // 3)]
    fill(tmp_path / "cut", 8)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_finished_shards_are_not_touched_again(tmp_path: Path) -> None:
    fill(tmp_path, 6)
    before = [path.stat().st_mtime_ns for path in find_shards(tmp_path)]
    fill(tmp_path, 6)
    assert [path.stat().st_mtime_ns for path in find_shards(tmp_path)] == before


def test_webdataset_reads_what_was_written(tmp_path: Path) -> None:
    import webdataset

    fill(tmp_path, 7)
    reader = webdataset.WebDataset([str(path) for path in find_shards(tmp_path)], shardshuffle=False)
    assert [(s["__key__"], s["png"]) for s in reader] == [
        (sample_key(i // 3, i % 3), b"picture %d" % i) for i in range(7)
    ]


def test_a_shard_has_room_for_ten_thousand(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"samples_per_shard is 10001.*1 to 10000"):
        ShardWriter(tmp_path, samples_per_shard=10_001)


def test_shards_are_found_by_folder_glob_braces_and_list(tmp_path: Path) -> None:
    fill(tmp_path, 9)
    three = [shard_path(tmp_path, i) for i in range(3)]
    assert find_shards(tmp_path) == three
    assert find_shards(str(tmp_path / "*.tar")) == three
    assert find_shards(str(tmp_path / "{00000..00002}.tar")) == three
    assert find_shards([str(three[2]), three[0]]) == [three[2], three[0]]


def test_a_missing_shard_is_named_with_its_pattern_and_what_lies_near(tmp_path: Path) -> None:
    fill(tmp_path / "train", 6)
    with pytest.raises(
        FileNotFoundError, match=r"no shard '.*00002.tar', asked for by.*2 of its 4.*00000.tar"
    ):
        find_shards(str(tmp_path / "train" / "{00000..00003}.tar"))
    with pytest.raises(FileNotFoundError, match=r"'.*trian.*'.*there is train/"):
        find_shards(str(tmp_path / "trian" / "*.tar"))
    with pytest.raises(FileNotFoundError, match="list is empty"):
        find_shards([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \*.tar in the folder.*there is nothing"):
        find_shards(tmp_path / "empty")


def test_what_would_run_a_program_or_count_twice_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    with pytest.raises(ValueError, match="runs a program"):
        find_shards("pipe:cat x.tar")
    with pytest.raises(ValueError, match="named twice"):
        find_shards([tmp_path, tmp_path / "00000.tar"])
