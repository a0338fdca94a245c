"""Whatever people's shards hold: it comes out as the eye would expect, or is replaced, listed and never mispaired."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.commands.errors import reported
from ldm.data.bad_samples import TooManyBadSamples
from ldm.data.captions import CaptionRecipe
from ldm.data.order import Request
from ldm.data.pipeline import ShardDataset
from tests.data.made import encoded, tar

SHAPE = (40, 60)
FIRST = (200, 40, 40)  # the left half's colour; the right half is SECOND
SECOND = (40, 40, 200)


def halves(mode: str = "RGB") -> Image.Image:
    values = np.empty((*SHAPE, 3), np.uint8)
    values[:, :30], values[:, 30:] = FIRST, SECOND
    return Image.fromarray(values).convert(mode)


def sixteen_bits() -> Image.Image:
    values = np.full(SHAPE, 50_000, np.uint16)
    values[:, 30:] = 5_000
    return Image.fromarray(values)


def on_its_side() -> bytes:
    tags = Image.Exif()
    tags[0x0112] = 6
    return encoded(halves().rotate(90, expand=True), "JPEG", exif=tags, quality=95)


def animated() -> bytes:
    out = io.BytesIO()
    halves().save(out, "GIF", save_all=True, append_images=[Image.new("RGB", SHAPE[::-1])])
    return out.getvalue()


def header_of(width: int, height: int) -> bytes:
    """A small JPEG that says it is large."""
    data = encoded(Image.new("RGB", (8, 8)), "JPEG")
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[at + 9 :]


SOUND: dict[str, bytes] = {
    "rgb.jpg": encoded(halves(), "JPEG", quality=95),
    "upper.JPG": encoded(halves(), "JPEG", quality=95),
    "long.jpeg": encoded(halves(), "JPEG", quality=95),
    "cmyk.jpg": encoded(halves("CMYK"), "JPEG", quality=95),
    "palette.png": encoded(halves().quantize(4), "PNG"),
    "alpha.png": encoded(halves("RGBA"), "PNG"),
    "animated.gif": animated(),
    "side.jpg": on_its_side(),
    "webp.webp": encoded(halves(), "WEBP", quality=95),
    "v1.final.jpg": encoded(halves(), "JPEG", quality=95),
}
GREY: dict[str, bytes] = {
    "grey.jpg": encoded(halves("L"), "JPEG"),
    "sixteen.png": encoded(sixteen_bits(), "PNG"),
}
NOISE = encoded(np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8), "PNG")
BAD: dict[str, tuple[bytes, str]] = {
    "cut.jpg": (SOUND["rgb.jpg"][:-200], "truncated"),
    "corrupt.png": (NOISE[:2_000] + b"\0" * 30 + NOISE[2_030:], "damaged"),
    "html.jpg": (b"<!DOCTYPE html><html>404</html>", "no known picture format"),
    "empty.jpg": (b"", "the file is empty"),
    "huge.jpg": (header_of(16_000, 10_000), "16000 x 10000 pixels are more than the limit"),
}


def key_of(name: str) -> str:
    return name.rpartition(".")[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ShardDataset:
    folder = tmp_path_factory.mktemp("shards")
    pictures = [*SOUND.items(), *GREY.items(), *((name, bad) for name, (bad, _) in BAD.items())]
    members = [(name, picture) for name, picture in pictures]
    captions = [(f"{key_of(name)}.txt", f"caption of {key_of(name)}".encode()) for name, _ in pictures]
    tar(folder / "a.tar", members + captions[::-1])  # no sample's members lie side by side
    return ShardDataset(shards=str(folder), image_size=20)


def number(data: ShardDataset, name: str) -> int:
    return data.index.find(f"a/{key_of(name)}")


@pytest.mark.parametrize("name", [*SOUND, *GREY])
def test_every_kind_of_picture_comes_out_as_the_eye_would_expect(data: ShardDataset, name: str) -> None:
    item, bad = data.read(Request(number(data, name), 0))
    assert not bad and item.caption == f"caption of {key_of(name)}" and item.image.shape == (3, 20, 20)
    left, right = item.image[:, 5:15, 2:8].float(), item.image[:, 5:15, 12:18].float()
    means = [part.mean(dim=(1, 2)).tolist() for part in (left, right)]
    if name in SOUND:
        assert all(abs(a - b) < 12 for a, b in zip(means[0] + means[1], FIRST + SECOND, strict=True)), means
    else:
        assert means[0][0] > means[1][0] + 20 and max(means[0]) - min(means[0]) < 1


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_is_replaced_with_its_caption_and_the_reason_is_kept(
    data: ShardDataset, name: str
) -> None:
    item, bad = data.read(Request(number(data, name), 0))
    assert bad[0].key == key_of(name) and BAD[name][1] in bad[0].reason
    good = item.key.removeprefix("a/")
    assert good in {key_of(one) for one in (*SOUND, *GREY)} and item.caption == f"caption of {good}"


def test_the_index_knows_sizes_as_displayed_and_what_is_no_picture(data: ShardDataset) -> None:
    width, height = data.index.column("width"), data.index.column("height")
    for name in (*SOUND, *GREY):
        assert (width[number(data, name)], height[number(data, name)]) == (60, 40), name
    assert width[number(data, "html.jpg")] == 0 and width[number(data, "huge.jpg")] == 16_000


def test_pictures_of_one_pixel_are_for_a_filter(tmp_path: Path) -> None:
    pictures = {"one": Image.new("RGB", (1, 1)), "large": halves()}
    members = [(f"{key}.png", encoded(picture, "PNG")) for key, picture in pictures.items()]
    tar(tmp_path / "a.tar", members + [(f"{key}.txt", key.encode()) for key in pictures])
    assert ShardDataset(shards=str(tmp_path), image_size=4)[0].image.shape == (3, 4, 4)
    filtered = ShardDataset(shards=str(tmp_path), image_size=4, filters=["min_side >= 2"])
    assert [filtered[i].caption for i in range(len(filtered))] == ["large"]


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ("grün".encode("latin-1"), "gr\ufffdn"),
        ("\ufeffmark".encode(), "mark"),
        ((b"word " * 2_000).strip(), ("word " * 2_000).strip()),
    ],
)
def test_any_caption_comes_through(tmp_path: Path, caption: bytes, said: str) -> None:
    tar(tmp_path / "a.tar", [("a.jpg", SOUND["rgb.jpg"]), ("a.txt", caption)])
    data = ShardDataset(shards=str(tmp_path), image_size=4)
    assert data[0].caption == said and data.index.column("caption_length").tolist() == [len(said)]


def test_an_empty_caption_is_skipped_or_taken_as_the_policy_says(tmp_path: Path) -> None:
    members = [("a.jpg", SOUND["rgb.jpg"]), ("a.txt", b" \n"), ("b.jpg", SOUND["rgb.jpg"]), ("b.txt", b"b")]
    tar(tmp_path / "a.tar", members)
    for missing, captions in (("skip", ["b"]), ("empty", ["", "b"])):
        data = ShardDataset(shards=str(tmp_path), image_size=4, captions=CaptionRecipe(missing=missing))
        assert [data[i].caption for i in range(len(data))] == captions


def test_what_is_wrong_with_members_is_listed_with_the_shard(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    picture = SOUND["rgb.jpg"]
    members = [
        ("../../evil.jpg", picture), ("../../evil.txt", b"e"), ("/root.jpg", picture), ("/root.txt", b"r"),
        ("twice.jpg", picture), ("twice.txt", b"1"), ("twice.jpg", picture),
        ("good.jpg", picture), ("good.txt", b"good"), ("good.pkl", pickle.dumps(Runs())), ("good.pyd", b""),
    ]  # fmt: skip
    tar(tmp_path / "a.tar", members)
    (tmp_path / "b.tar").write_bytes(b"")
    data = ShardDataset(shards=str(tmp_path), image_size=4)
    assert [data[i].caption for i in range(len(data))] == ["good"] and not (tmp_path / "ran").exists()
    assert {(skip.shard, skip.key, skip.reason) for skip in data.index.skipped} == {
        ("a.tar", "../../evil", "its name leads out of the folder"),
        ("a.tar", "/root", "its name leads out of the folder"),
        ("a.tar", "twice", "has more than one picture"),
        ("a.tar", "", "2 members are pickles: they are never opened"),
        ("b.tar", "", "the shard is an empty file"),
    }


def test_too_many_bad_samples_end_a_command_with_status_65(
    capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    tar(tmp_path / "a.tar", [("a.jpg", b"<html>"), ("a.txt", b"a")])
    data = ShardDataset(shards=str(tmp_path), image_size=4)
    with pytest.raises(SystemExit) as left, reported():
        data.read(Request(0, 0))
    assert left.value.code == 65
    assert capsys.readouterr().err.startswith(
        "error: 100 bad samples in a row; the first is a.tar, a: no known"
    )
    with pytest.raises(TooManyBadSamples):
        data.read(Request(0, 0))


def test_json_that_is_none_hurts_nobody(tmp_path: Path) -> None:
    members = [("a.jpg", SOUND["rgb.jpg"]), ("a.txt", b"a")]
    for i, text in enumerate([b"{", b"[1]", b"\xff", b"", b"[" * 100_000, json.dumps({"x": 1e400}).encode()]):
        tar(tmp_path / f"{i}.tar", [*members, ("a.json", text)])
    data = ShardDataset(shards=str(tmp_path), image_size=4)
    assert [data[i].caption for i in range(len(data))] == ["a"] * 6
