"""Every sound sample is found and read by its place; whatever is not sound is listed, and nothing is mispaired."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ldm.data.index import SampleIndex, build_index, report
from ldm.data.scan import samples_of
from ldm.data.shards import ShardWriter, find_shards
from ldm.data.tar import members
from tests.data.made import numbered, tar


def assert_rightly_paired(index: SampleIndex) -> None:
    for i in range(len(index)):
        name = index.key(i).split("/")[1]
        picture, txt = index.read(i, "picture"), index.read(i, "txt")
        assert picture is not None and set(picture.decode().split("png of ")) == {"", name}
        assert txt == f"txt of {name}".encode()


def test_every_member_is_read_by_its_place(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, samples_per_shard=4) as writer:
        for i in range(10):
            writer.write(b"picture" * i, "png", f"caption {i}", {"i": i})
    index = build_index(find_shards(tmp_path))
    assert len(index) == 10 and not index.skipped
    assert [index.key(i) for i in (0, 3, 4, 9)] == [
        "00000/000000000", "00000/000000003", "00001/000010000", "00002/000020001",
    ]  # fmt: skip
    for i in (9, 0, 5):
        assert index.read(i, "picture") == b"picture" * i
        assert index.read(i, "txt") == f"caption {i}".encode()
        assert index.read(i, "json") == f'{{"i": {i}}}'.encode()
        assert index.find(index.key(i)) == i
    with pytest.raises(KeyError):
        index.find("00002/000020009")


def test_an_index_travels_to_another_process(tmp_path: Path) -> None:
    index = build_index([tar(tmp_path / "a.tar", numbered(3))])
    assert_rightly_paired(index)
    assert_rightly_paired(pickle.loads(pickle.dumps(index)))


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_in_every_kind_of_tar(tmp_path: Path, kind: int) -> None:
    names = ["short", "folder/deep/inside", "x" * 90]
    if kind != tarfile.USTAR_FORMAT:
        names += ["y" * 200, "größe", "b/" + "z" * 150]
    parts = [(f"{name}.{part}", f"{part} {name}".encode()) for name in names for part in ("jpeg", "txt")]
    path = tar(tmp_path / "a.tar", parts, kind)
    index = build_index([path])
    assert [index.key(i) for i in range(len(index))] == [f"a/{name}" for name in names]
    assert [index.read(i, "txt") for i in range(len(index))] == [f"txt {name}".encode() for name in names]
    assert not index.skipped


def whole_tar(path: Path, names: list[tuple[str, bytes]], kind: int) -> bytes:
    """A tar up to its end mark; what follows is padding."""
    data = tar(path, names, kind).read_bytes()
    return data[: -(-len(data.rstrip(b"\0")) // 512) * 512 + 1024]


def test_a_tar_cut_at_any_byte_is_reported_and_never_mispairs(tmp_path: Path) -> None:
    whole = whole_tar(tmp_path / "whole.tar", numbered(3), tarfile.USTAR_FORMAT)
    for cut in range(1, len(whole)):
        found, damage = members(tmp_path, whole[:cut])
        assert damage, cut
        for key, sample in samples_of(found)[0].items():
            for part, (offset, size) in sample.items():
                assert whole[offset : offset + size].startswith(
                    f"{'png' if part == 'picture' else part} of {key}".encode()
                )
    found, damage = members(tmp_path, whole)
    assert not damage and len(samples_of(found)[0]) == 3 and not samples_of(found)[1]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_a_cut_tar_is_reported_through_its_index(tmp_path: Path, kind: int) -> None:
    names = numbered(3) if kind == tarfile.USTAR_FORMAT else [("\u00e9" + n, d) for n, d in numbered(3)]
    whole = whole_tar(tmp_path / "whole.tar", names, kind)
    for cut in range(0, len(whole), 997):
        path = tmp_path / f"{cut}.tar"
        path.write_bytes(whole[:cut])
        try:
            index = build_index([path])
        except ValueError as error:
            assert path.name in str(error)
            continue
        assert index.skipped, cut
        if kind == tarfile.USTAR_FORMAT:
            assert_rightly_paired(index)
    (tmp_path / "all.tar").write_bytes(whole)
    index = build_index([tmp_path / "all.tar"])
    assert len(index) == 3 and not index.skipped


def test_rubbish_in_the_middle_ends_the_reading_of_that_shard_only(tmp_path: Path) -> None:
    data = bytearray(tar(tmp_path / "a.tar", numbered(4)).read_bytes())
    at = bytes(data).index(b"s2.json")
    data[at : at + 300] = b"\x99" * 300
    (tmp_path / "a.tar").write_bytes(data)
    tar(tmp_path / "b.tar", numbered(2))
    index = build_index(find_shards(tmp_path))
    assert [index.key(i) for i in range(len(index))] == ["a/s0", "a/s1", "b/s0", "b/s1"]
    assert "no tar header at byte" in index.skipped[-1].reason


def test_what_does_not_form_a_sample_is_listed_with_its_reason(tmp_path: Path) -> None:
    names = [
        ("good.png", b"1"), ("good.txt", b"good"),
        ("picture.png", b"2"),
        ("text.txt", b"3"),
        ("twice.png", b"4"), ("twice.txt", b"4"), ("twice.png", b"5"),
        ("two.png", b"6"), ("two.jpg", b"6"), ("two.txt", b"6"),
        ("far.PNG", b"7"), ("README", b""), ("far.txt", b"far"),
    ]  # fmt: skip
    index = build_index([tar(tmp_path / "a.tar", names)])
    assert [(index.key(i), index.read(i, "txt")) for i in range(len(index))] == [
        ("a/good", b"good"),
        ("a/far", b"far"),
    ]
    reasons = {skip.key: skip.reason for skip in index.skipped}
    assert reasons == {
        "picture": "has no caption (txt)",
        "text": "has no picture",
        "twice": "has more than one picture",
        "two": "has more than one picture",
        "README": "has no picture",
    }
    assert "5 things" in report(index.skipped) and "a.tar, picture: has no caption" in report(index.skipped)


def test_a_caption_is_a_text_in_any_of_the_fields(tmp_path: Path) -> None:
    jsons = {
        "b": b'{"said": "x"}',
        "c": b'{"said": ["", " "]}',
        "d": b'{"said": ["", "y"]}',
        "e": b"{",
        "f": b'{"said": 3}',
    }
    members = [("a.png", b""), ("a.txt", b"z"), ("g.png", b""), ("g.txt", b" \n")]
    members += [
        member for key, data in jsons.items() for member in ((f"{key}.png", b""), (f"{key}.json", data))
    ]
    path = tar(tmp_path / "a.tar", members)

    def keys(**options: Any) -> str:
        index = build_index([path], **options)
        return "".join(index.key(i)[-1] for i in range(len(index)))

    assert keys() == "a" and keys(caption_fields=["said"]) == "bd"
    assert keys(caption_fields=["said", "txt"]) == "abd"
    assert keys(caption_fields=None) == keys(missing="empty") == "agbcdef"
    with pytest.raises(
        ValueError, match=r"6 samples of a.tar have no caption in 'txt', the first is g .*in txt, said"
    ):
        build_index([path], missing="error")
    with pytest.raises(ValueError, match="texts there are in said, txt: set caption_field"):
        build_index([path], caption_fields=["text"])


def test_no_sound_sample_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no sound sample in 1 shards \(a.tar: the shard is an empty file"):
        build_index([tmp_path / "a.tar"])


def test_the_fingerprint_changes_with_the_contents_but_not_with_the_place(tmp_path: Path) -> None:
    names = numbered(3)
    others = [
        names[:-3],
        [*names[:-1], ("s2.txt", b"longer than before")],
        [("r" + n[1:], d) for n, d in names],
    ]
    fingerprints = []
    for number, contents in enumerate([names, names, *others]):
        (tmp_path / str(number)).mkdir()
        path = tar(tmp_path / str(number) / "a.tar", contents)
        fingerprints.append(build_index([path]).fingerprint)
    assert fingerprints[0] == fingerprints[1] and len(set(fingerprints)) == 4
