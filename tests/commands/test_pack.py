"""``ldm pack`` as a user runs it: a folder with all kinds of pictures, interrupted and given again."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.commands import pack as module
from ldm.commands.pack import pack
from ldm.data.packing import Packed, pack_one
from ldm.data.pipeline import ShardDataset
from ldm.data.sources import Problem

NUM = 26


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbered pictures: the red value names each. Two are broken, one has no caption, one caption no picture."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "images").mkdir()
    with (folder / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "caption"])
        for i in range(NUM):
            pixels = np.full((20, 30, 3), 100, np.uint8)
            pixels[..., 0] = i
            Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
            if i != 5:
                table.writerow([f"{i}.png", f"number {i}"])
        table.writerow(["gone.png", "nothing"])
    (folder / "images" / "3.png").write_text("<html>")
    (folder / "images" / "7.png").write_bytes((folder / "images" / "6.png").read_bytes()[:40])
    return folder


def run(folder: Path, out: Path, **options: object) -> None:
    arguments = {
        "images": str(folder / "images"),
        "captions": str(folder / "captions.csv"),
        "out": str(out),
        "image_size": 16,
        "val_fraction": 0.2,
        "samples_per_shard": 6,
        "num_workers": 1,
    }
    pack(**(arguments | options))  # type: ignore[arg-type]


def contents(out: Path) -> dict[str, bytes]:
    files = (path for path in out.rglob("*") if path.is_file() and path.suffix != ".idx")
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "out"
    run(folder, out)
    return out


def test_every_sound_picture_is_in_one_shard_with_its_caption(packed: Path) -> None:
    numbers = []
    for split in ("train", "val"):
        data = ShardDataset(shards=str(packed / split), image_size=16)
        assert not data.index.skipped
        for i in range(len(data)):
            number = int(data[i].image[0, 0, 0])
            assert data[i].caption == f"number {number}"
            numbers.append(number)
    assert sorted(numbers) == [i for i in range(NUM) if i not in (3, 5, 7)]


def test_the_report_lists_what_was_not_packed_and_why(
    packed: Path, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    report = json.loads((packed / "report.json").read_text())
    assert sum(report["packed"].values()) == 23
    assert report["not packed"] == {"caption without picture": 1, "no caption": 1, "unreadable picture": 2}
    assert {problem["file"]: problem["kind"] for problem in report["problems"]} == {
        "3.png": "unreadable picture",
        "7.png": "unreadable picture",
        "5.png": "no caption",
        "gone.png": "caption without picture",
    }
    assert all(problem["reason"] for problem in report["problems"])
    run(folder, packed)
    printed = capsys.readouterr().out
    assert "2 x unreadable picture" in printed and "3.png: no known picture format" in printed


def test_any_number_of_processes_writes_the_same(packed: Path, folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "out", num_workers=2)
    assert contents(tmp_path / "out") == contents(packed)


@pytest.mark.parametrize("stop_at", [0, 3, 11, 19, 22])
def test_an_interrupted_packing_goes_on_and_ends_in_the_same_files(
    packed: Path, folder: Path, tmp_path: Path, stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = stop_at

    def interrupted(*args: object, **options: object) -> Packed | Problem:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return pack_one(*args, **options)  # type: ignore[arg-type]

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(module, "pack_one", interrupted)
        with pytest.raises(SystemExit) as stopped:
            run(folder, out)
    assert stopped.value.code == 130
    assert not (out / "report.json").exists()
    run(folder, out)
    assert contents(out) == contents(packed)


def test_what_is_done_is_not_done_again(packed: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(packed)
    monkeypatch.setattr(module, "pack_one", lambda *args, **options: pytest.fail("packed again"))
    run(folder, packed)
    assert contents(packed) == before


def test_shards_of_other_settings_or_pictures_are_never_mixed(
    packed: Path, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileExistsError, match=r"another image_size \(16, now 32\); choose another out"):
        run(folder, packed, image_size=32)
    shutil.copytree(folder, tmp_path / "more")
    Image.new("RGB", (9, 9)).save(tmp_path / "more" / "images" / "0.png")
    with pytest.raises(FileExistsError, match="another pictures"):
        run(tmp_path / "more", packed)
    (tmp_path / "other" / "train").mkdir(parents=True)
    (tmp_path / "other" / "train" / "00000.tar").touch()
    with pytest.raises(FileExistsError, match="not of this packing"):
        run(folder, tmp_path / "other")


def test_nothing_to_pack_is_an_error_with_a_report(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_text("<html>")
    (tmp_path / "images" / "a.txt").write_text("a page")
    with pytest.raises(ValueError, match=r"nothing could be packed .*report.json says why"):
        run(tmp_path, tmp_path / "out", captions=None)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["not packed"] == {
        "unreadable picture": 1
    }


def test_wrong_options_are_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"background": "wite"}, "no colour 'wite'"),
        ({"image_size": 0}, "image_size is 0"),
        ({"val_fraction": 1.5}, "val_fraction is 1.5"),
        ({"samples_per_shard": 10_001}, "samples_per_shard is 10001"),
    ):
        with pytest.raises(ValueError, match=message):
            run(folder, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
