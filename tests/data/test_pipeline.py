"""The order is exact: the same samples in every step, on any number of processes and workers, after any restart."""

from __future__ import annotations

import io
import itertools
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.pipeline import GlobalBatches, ShardDataset, endless, in_order
from ldm.data.sample import Preparation
from ldm.data.shards import ShardWriter
from ldm.data.streaming import streaming
from ldm.interfaces import Batch

NUM = 23


def png(i: int) -> bytes:
    """A picture that is wider than high and names its sample by its red value."""
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[..., 0] = i
    pixels[..., 1] = np.arange(12) * 20
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, samples_per_shard=10) as writer:
        for i in range(NUM):
            writer.write(
                png(i), "png", f"sample {i}", {"captions": [f"sample {i}", f"{i} again", f"no. {i}"]}
            )
    return str(folder)


def taken(order: GlobalBatches, steps: int) -> list[list[tuple[int, int]]]:
    return list(itertools.islice(order, steps))


def assert_same(a: Batch, b: Batch) -> None:
    assert (a.keys, a.visits, a.captions) == (b.keys, b.visits, b.captions)
    assert (list(a.slots), a.num_slots) == (list(b.slots), b.num_slots)
    torch.testing.assert_close(a.images, b.images, rtol=0, atol=0)


# --- the order -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("global_batch", [1, 4, 23, 64])
def test_each_sample_comes_once_per_epoch_and_batches_straddle_epochs(global_batch: int) -> None:
    order = GlobalBatches(num_samples=NUM, global_batch=global_batch, seed=1)
    flat = [request for step in taken(order, 6 * NUM // global_batch + 6) for request in step]
    for epoch in range(3):
        one = flat[epoch * NUM : (epoch + 1) * NUM]
        assert sorted(index for index, _ in one) == list(range(NUM))
        assert {visit for _, visit in one} == {epoch}


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_processes_share_the_same_global_batches(world_size: int) -> None:
    alone = taken(GlobalBatches(num_samples=NUM, global_batch=12), 9)
    ranks = [
        GlobalBatches(num_samples=NUM, global_batch=12, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    together = [[*chain(*step)] for step in zip(*(taken(order, 9) for order in ranks), strict=True)]
    assert together == alone
    assert [slot for order in ranks for slot in order.slots] == list(range(12))


@pytest.mark.parametrize("start", [0, 12, 24, 36, 1200, 7])
def test_a_restart_goes_on_where_the_run_stood(start: int) -> None:
    whole = [r for step in taken(GlobalBatches(num_samples=NUM, global_batch=12), 120) for r in step]
    resumed = [
        r for step in taken(GlobalBatches(num_samples=NUM, global_batch=6, start=start), 4) for r in step
    ]
    assert resumed == whole[start : start + 24]


def test_epochs_and_seeds_differ() -> None:
    epochs = [taken(GlobalBatches(num_samples=100, global_batch=100, start=100 * e), 1)[0] for e in range(2)]
    other = taken(GlobalBatches(num_samples=100, global_batch=100, seed=1), 1)[0]
    orders = [[index for index, _ in one] for one in (*epochs, other)]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size is 10 .* 4 of them"):
        GlobalBatches(num_samples=NUM, global_batch=10, world_size=4)
    with pytest.raises(ValueError, match="empty"):
        GlobalBatches(num_samples=0, global_batch=10)


# --- the samples -----------------------------------------------------------------------------------------------------


def test_picture_caption_and_key_belong_together(shards: str) -> None:
    data = ShardDataset(shards=shards, image_size=8)
    for i in (0, 9, 10, 22):
        item = data[i, 0]
        assert item.image.dtype == torch.uint8 and item.image.shape == (3, 8, 8)
        assert set(item.image[0].flatten().tolist()) == {i}
        assert item.caption == f"sample {i}"
        assert item.key == f"0000{i // 10}/0000{i // 10}000{i % 10}"


def test_choices_depend_on_sample_and_visit_and_on_nothing_else(shards: str) -> None:
    options = {"shards": shards, "image_size": 8, "caption_field": "captions", "flip": True, "crop": "random"}
    data, again = ShardDataset(**options), ShardDataset(**options)
    seen = {visit: data[5, visit] for visit in range(40)}
    for visit in reversed(range(40)):
        item = again[5, visit]
        assert item.caption == seen[visit].caption and torch.equal(item.image, seen[visit].image)
    assert {item.caption for item in seen.values()} == {"sample 5", "5 again", "no. 5"}
    rows = {tuple(item.image[1, 0].tolist()) for item in seen.values()}
    assert {row[0] < row[-1] for row in rows} == {True, False}  # mirrored and not
    assert len({min(row) for row in rows}) >= 4  # of five places to crop at
    assert [ShardDataset(**options, seed=1)[5, visit].caption for visit in range(40)] != [
        item.caption for item in seen.values()
    ]


def test_without_random_options_every_visit_is_the_same(shards: str) -> None:
    data = ShardDataset(shards=shards, image_size=8)
    assert torch.equal(data[3, 0].image, data[3, 7].image)
    assert data[3, 0].image[1, 0].tolist() == [
        40,
        60,
        80,
        100,
        120,
        140,
        160,
        180,
    ]  # the middle eight of twelve


def test_size_conditioning_says_how_the_picture_was_cut(shards: str) -> None:
    """The green value of a column says where in the picture it was: crop and mirroring are read off the picture."""
    data = ShardDataset(shards=shards, image_size=8, flip=True, crop="random")
    seen = set()
    for visit in range(40):
        item = data[5, visit]
        row = item.image[1, 0].tolist()  # 20 per pixel, in a picture that is 12 wide
        mirrored = row[0] > row[-1]
        left = (220 - row[0]) // 20 if mirrored else row[0] // 20
        assert item.sizes == (8, 12, 0, left, 8, 8)
        seen.add((left, mirrored))
    assert len(seen) >= 8


def test_the_original_size_may_come_from_before_packing(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        writer.write(png(1), "png", "a", {"original_height": 800, "original_width": 1200})
        writer.write(png(2), "png", "b", {})
    named = ["original_height", "original_width"]
    data = ShardDataset(shards=str(tmp_path), image_size=8, original_size_from=named)
    assert [data[i].sizes[:2] for i in range(2)] == [(800, 1200), (8, 12)]


def test_a_damaged_picture_is_replaced_by_the_next_sample_whole(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        for i in range(4):
            writer.write(b"<html>" if i in (1, 3) else png(i), "png", f"sample {i}", {})
    data = ShardDataset(shards=str(tmp_path), image_size=8)
    assert [data[i].caption for i in range(4)] == ["sample 0", "sample 2", "sample 2", "sample 0"]
    assert [data[i].key[-1] for i in range(4)] == ["0", "2", "2", "0"]


def test_nothing_but_damaged_pictures_is_an_error(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        writer.write(b"<html>", "png", "404", {})
    with pytest.raises(ValueError, match="100 damaged pictures in a row, from sample 00000/000000000"):
        ShardDataset(shards=str(tmp_path), image_size=8)[0]


def test_options_that_are_none_are_named(shards: str) -> None:
    with pytest.raises(ValueError, match=r"crop is 'centre'.*center, random"):
        ShardDataset(shards=shards, image_size=8, crop="centre")
    with pytest.raises(ValueError, match="image_size is 0"):
        ShardDataset(shards=shards, image_size=0)
    with pytest.raises(
        ValueError, match=r"no sound sample .* texts there are in captions, txt: set caption_field"
    ):
        ShardDataset(shards=shards, image_size=8, caption_field="text")[0]


# --- the loaders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_change_nothing(shards: str, num_workers: int) -> None:
    data = ShardDataset(shards=shards, image_size=8, caption_field="captions", crop="random", flip=True)
    order = GlobalBatches(num_samples=NUM, global_batch=6, start=18)
    batches = list(itertools.islice(endless(data, lambda: order, num_workers=num_workers), 5))
    for batch, requests in zip(batches, order, strict=False):
        assert batch.sizes is not None and batch.sizes.dtype == torch.float32
        assert batch.images is not None and batch.images.dtype == torch.float32
        assert (len(batch), batch.slots, batch.num_slots) == (6, range(6), 6)
        for row, request in enumerate(requests):
            item = data[request]
            assert (batch.keys[row], batch.captions[row], batch.visits[row]) == (
                item.key,
                item.caption,
                item.visit,
            )
            torch.testing.assert_close(batch.images[row], item.image / 127.5 - 1)
            assert tuple(batch.sizes[row].tolist()) == item.sizes


def test_the_order_is_asked_for_when_an_iteration_begins(shards: str) -> None:
    data = ShardDataset(shards=shards, image_size=8)
    seen = 0
    loader = endless(data, lambda: GlobalBatches(num_samples=NUM, global_batch=5, start=seen), num_workers=0)
    first = list(itertools.islice(loader, 3))
    seen = 10
    assert_same(next(iter(loader)), first[2])
    with pytest.raises(TypeError, match="no length"):
        len(loader)


def test_a_walk_in_order_is_complete_and_the_same_each_time(shards: str) -> None:
    data = ShardDataset(shards=shards, image_size=8, caption_field="captions")
    loader = in_order(data, batch_size=10)
    batches = list(loader)
    assert [len(batch) for batch in batches] == [10, 10, 3] and len(loader) == 3
    assert [key for batch in batches for key in batch.keys] == [data.index.key(i) for i in range(NUM)]
    assert [slot for batch in batches for slot in batch.slots] == list(range(NUM))
    assert {batch.num_slots for batch in batches} == {NUM}
    for a, b in zip(batches, loader, strict=True):
        assert_same(a, b)
    assert [batch.keys for batch in in_order(data, batch_size=4, start=8, stop=13)] == [
        [data.index.key(i) for i in piece] for piece in (range(8, 12), range(12, 13))
    ]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stream_yields_the_same_kind_of_batch_without_end(shards: str, num_workers: int) -> None:
    prepared = Preparation(image_size=8, caption_field="captions")
    stream = streaming(
        shards, prepared, batch_size=8, rank=1, world_size=2, num_workers=num_workers, shuffle_buffer=7
    )
    batches = list(itertools.islice(stream, 20))
    for batch in batches:
        assert batch.images is not None and batch.images.shape == (4, 3, 8, 8)
        assert (batch.slots, batch.num_slots) == (range(4, 8), 8)
        for row in range(4):
            number = round(float((batch.images[row, 0, 0, 0] + 1) * 127.5))
            assert str(number) in batch.captions[row]
            assert batch.keys[row] == f"0000{number // 10}/0000{number // 10}000{number % 10}"
    assert len({key for batch in batches for key in batch.keys}) == NUM


def test_streams_refuse_addresses_that_run_programs_and_missing_shards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="runs a program"):
        streaming("pipe:cat a.tar", Preparation(image_size=8), batch_size=2)
    with pytest.raises(FileNotFoundError, match="no shard"):
        streaming(str(tmp_path / "a.tar"), Preparation(image_size=8), batch_size=2)
