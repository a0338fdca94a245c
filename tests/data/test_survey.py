"""What ldm data says of shards is what is in them."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.data.shards import ShardWriter, find_shards
from ldm.data.survey import groups, look_of, survey
from tests.data.made import encoded, smooth


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pictures: two the same, a third the same in another format and size, one flat, one damaged."""
    folder = tmp_path_factory.mktemp("survey")
    blocks = np.random.default_rng(0).permutation(72).reshape(8, 9, 1).astype(np.uint8) * np.uint8([3, 3, 3])
    first, second = blocks.repeat(8, 0).repeat(8, 1), smooth(64, 96, seed=2)
    smaller = np.asarray(Image.fromarray(first).resize((36, 32)))
    png = encoded(first, "PNG")
    whole = encoded(second, "JPEG")
    with ShardWriter(folder, samples_per_shard=3) as writer:
        writer.write(png, "png", "a red cat", {"captions": ["A cat, red.", "cat"]})
        writer.write(whole, "jpg", "a dog", {"captions": ["one dog"]})
        writer.write(png, "png", "A red cat", {})
        writer.write(encoded(smaller, "JPEG", quality=90), "jpg", "", {"captions": []})
        writer.write(encoded(np.full((20, 30, 3), 9, np.uint8), "PNG"), "png", "a dog", {})
        writer.write(encoded(np.full((20, 31, 3), 7, np.uint8), "PNG"), "png", "grey", {})
        writer.write(whole[: len(whole) // 2], "jpg", "half", {})
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_everything_is_counted(folder: Path, num_workers: int) -> None:
    found = survey(find_shards(folder), ["txt", "captions"], num_workers=num_workers)
    keys = [found.index.key(i)[-1] + found.index.key(i)[4] for i in range(7)]
    assert keys == ["00", "10", "20", "01", "11", "21", "02"]
    assert found.formats == {"png": 4, "jpeg": 3}
    assert found.captions_per_sample.tolist() == [3, 2, 1, 0, 1, 1, 1]
    assert sorted(found.words.tolist()) == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert found.characters.max() == len("A cat, red.")
    assert found.vocabulary == Counter(a=5, cat=4, red=3, dog=3, one=1, grey=1, half=1)
    assert found.fields == Counter(txt=6, captions=2)
    assert [group.tolist() for group in groups(found.pictures)] == [[0, 2]]
    assert [group.tolist() for group in groups(found.looks)] == [[0, 2, 3]]
    assert [group.tolist() for group in groups(found.captions)] == [[3, 6]]
    assert [str(bad).partition(": ")[0] for bad in found.bad] == ["00002.tar, 00002/000020000"]


def test_without_decoding_nothing_is_said_of_damage_and_looks(folder: Path) -> None:
    found = survey(find_shards(folder), ["txt"], decode=False)
    assert not found.bad and not found.looks.any() and not found.decoded
    assert found.captions_per_sample.tolist() == [1, 1, 1, 0, 1, 1, 1]


def test_copies_have_nearly_the_same_look_and_other_pictures_have_not() -> None:
    looks = [look_of(smooth(80, 60, seed=seed)) for seed in range(40)]
    assert len(set(looks)) == 40
    for seed in range(5):
        out = io.BytesIO()
        Image.fromarray(smooth(80, 60, seed=seed)).resize((160, 120)).save(out, "JPEG", quality=92)
        again = look_of(np.asarray(Image.open(out)))
        apart = [bin(again ^ look).count("1") for look in looks]
        assert apart[seed] <= 8 and sorted(apart)[1] > 12  # a few places are as bright as their neighbour
    assert look_of(np.full((9, 9, 3), 200, np.uint8)) == 0


def test_groups_of_hashes() -> None:
    hashes = np.array([5, 0, 7, 5, 0, 2, 7, 7], np.uint64)
    assert [group.tolist() for group in groups(hashes)] == [[2, 6, 7], [0, 3]]
    assert groups(np.zeros(0, np.uint64)) == []
