"""Who goes where depends on names alone, and a picture is encoded again only where it must be."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.data.packing import Packed, Settings, pack_one, plan
from ldm.data.sources import Problem, Source

SETTINGS = Settings(image_size=None, background=(255, 255, 255), max_pixels=10_000)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def sources(num: int) -> list[Source]:
    return [Source(f"{i}.png", (f"number {i}",)) for i in range(num)]


def split_of(num: int, **options: float) -> dict[str, str]:
    planned = plan(sources(num), **({"samples_per_shard": 10, "val_fraction": 0.2, "seed": 0} | options))  # type: ignore[arg-type]
    return {source.file: shard.split for shard in planned for source in shard.sources}


def test_every_picture_is_dealt_out_once_in_full_shards() -> None:
    planned = plan(sources(995), samples_per_shard=10, val_fraction=0.2, seed=0)
    files = [source.file for shard in planned for source in shard.sources]
    assert sorted(files) == sorted(source.file for source in sources(995))
    for split in ("train", "val"):
        shards = [shard for shard in planned if shard.split == split]
        assert [shard.shard for shard in shards] == list(range(len(shards)))
        assert all(len(shard.sources) == 10 for shard in shards[:-1])


def test_a_picture_stays_in_its_split_when_others_come() -> None:
    few, many = split_of(300), split_of(900)
    assert all(many[file] == split for file, split in few.items())
    share = list(many.values()).count("val") / 900
    assert abs(share - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 900)
    assert split_of(300, seed=1) != few
    assert set(split_of(300, val_fraction=0.0).values()) == {"train"}


def test_a_shard_is_a_fair_sample() -> None:
    first = plan(sources(1000), samples_per_shard=100, val_fraction=0.0, seed=0)[0]
    assert 350 < np.mean([int(source.file[:-4]) for source in first.sources]) < 650


def test_a_share_must_leave_something_to_train_on() -> None:
    with pytest.raises(ValueError, match="val_fraction is 1"):
        split_of(3, val_fraction=1.0)


def packed(
    folder: Path, name: str, picture: Image.Image, settings: Settings = SETTINGS, **options: object
) -> Packed:
    picture.save(folder / name, **options)
    result = pack_one(folder, Source(name, ("one", "two")), settings)
    assert isinstance(result, Packed)
    return result


@pytest.mark.parametrize(("name", "extension"), [("a.png", "png"), ("a.jpg", "jpg")])
def test_a_plain_picture_keeps_its_own_bytes(tmp_path: Path, name: str, extension: str) -> None:
    result = packed(tmp_path, name, NOISE)
    assert result.image == (tmp_path / name).read_bytes() and result.extension == extension
    assert result.caption == "one"
    assert result.meta == {
        "captions": ["one", "two"], "file": name,
        "width": 60, "height": 40, "original_width": 60, "original_height": 40,
    }  # fmt: skip


def test_others_become_plain_ones(tmp_path: Path) -> None:
    clear = NOISE.convert("RGBA")
    clear.putalpha(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for result, size in (
        (packed(tmp_path, "clear.png", clear), (60, 40)),
        (packed(tmp_path, "grey.png", NOISE.convert("L")), (60, 40)),
        (packed(tmp_path, "turned.jpg", NOISE, exif=exif), (40, 60)),
        (packed(tmp_path, "web.webp", NOISE), (60, 40)),
        (packed(tmp_path, "scan.tif", NOISE), (60, 40)),
    ):
        with Image.open(io.BytesIO(result.image)) as picture:
            assert picture.mode == "RGB" and picture.size == size and not picture.getexif()
            assert picture.format == {"png": "PNG", "jpg": "JPEG"}[result.extension]
        assert (result.meta["width"], result.meta["height"]) == size


def test_pictures_are_shrunk_but_never_enlarged(tmp_path: Path) -> None:
    small = packed(tmp_path, "a.png", NOISE, Settings(image_size=20, background=(0, 0, 0), max_pixels=10_000))
    assert Image.open(io.BytesIO(small.image)).size == (30, 20)
    assert (small.meta["width"], small.meta["original_width"]) == (30, 60)
    same = packed(tmp_path, "a.png", NOISE, Settings(image_size=64, background=(0, 0, 0), max_pixels=10_000))
    assert same.image == (tmp_path / "a.png").read_bytes()


def test_what_cannot_be_read_is_a_problem_with_its_reason(tmp_path: Path) -> None:
    NOISE.resize((200, 200)).save(tmp_path / "large.png")
    (tmp_path / "page.jpg").write_text("<html>")
    (tmp_path / "empty.png").touch()
    for name, reason in {
        "large.png": "more than the limit of 10,000",
        "page.jpg": "no known picture format",
        "empty.png": "the file is empty",
        "gone.png": "No such file",
    }.items():
        problem = pack_one(tmp_path, Source(name, ("x",)), SETTINGS)
        assert (
            isinstance(problem, Problem) and problem.kind == "unreadable picture" and reason in problem.reason
        )
